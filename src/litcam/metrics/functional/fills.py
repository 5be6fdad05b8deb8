"""What stands where pixels were removed. Knows no order of pixels, no net and no protocol."""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.ndimage import gaussian_filter1d
from scipy.sparse.linalg import splu
from torch import Tensor
from torch.nn import functional as F

from litcam.errors import InputError

BLUR_KERNEL, BLUR_SIGMA = 11, 5.0  # of RISE's insertion
NEXT, DIAGONAL = 1 / 6, 1 / 12  # weights of a pixel's eight neighbours in ROAD's imputation
NOISE = 0.01  # standard deviation of what ROAD adds to an imputed pixel

Paint = Callable[[Tensor, Tensor], Tensor]  # index [b] into the batch, kept pixels bool [b, 1, H, W] → [b, C, H, W]


@dataclass(frozen=True)
class FillOptions:
    """What fills may ask for.

    Attributes:
        mean: per channel, of the normalisation of the images.
        std: per channel, of the same.
        seed: of the noise.

    Raises:
        InputError: for one of mean and std without the other, of different lengths, or a std that is not positive.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        mean, std = self.mean or (), self.std or ()
        if len(mean) != len(std) or not all(value > 0 for value in std):
            raise InputError(
                f"mean {self.mean} and std {self.std} do not make a normalisation: both are needed, with one number "
                "per channel each, those of std positive."
            )


NO_OPTIONS = FillOptions()


@dataclass(frozen=True)
class Fill:
    """A way to fill removed pixels.

    Attributes:
        prepare: called once per batch with the normalised images [B, C, H, W]; gives the function that paints them.
        one_empty_image: whether every image is the same once no pixel of it is left.
        in_image_space: whether it cannot do without mean and std.
    """

    prepare: Callable[[Tensor, FillOptions], Paint]
    one_empty_image: bool = False
    in_image_space: bool = False


def _zero(images: Tensor, options: FillOptions) -> Paint:
    """0 in normalised space: the mean colour."""
    return _over(images, images.new_zeros(()))


def _black(images: Tensor, options: FillOptions) -> Paint:
    """0 in the image of [0, 1]."""
    if options.mean is None or options.std is None:
        raise InputError("Black needs mean and std of the images' normalisation.")
    return _over(images, -_per_channel(options.mean, images) / _per_channel(options.std, images))


def _blurred(images: Tensor, options: FillOptions) -> Paint:
    """The image under the Gaussian of RISE's authors.

    They smooth a single one in a square of 11 by 11 pixels with σ = 5, where scipy mirrors what would lie beyond the
    square; the borders of the image are padded with zeros in normalised space.
    """
    profile = torch.from_numpy(gaussian_filter1d(np.eye(BLUR_KERNEL)[BLUR_KERNEL // 2], BLUR_SIGMA))
    kernel = torch.outer(profile, profile).to(images).expand(images.shape[1], 1, -1, -1)
    return _over(images, F.conv2d(images, kernel, padding=BLUR_KERNEL // 2, groups=images.shape[1]))


def _imputed(images: Tensor, options: FillOptions) -> Paint:
    """Noisy linear imputation (Rong et al., ICML 2022), see :func:`impute`.

    The noise follows from the seed and the image's pixels alone, and is one field per image. Its deviation is 0.01 in
    the image of [0, 1] where the normalisation is known, as in the authors' code; else 0.01 in normalised space.
    """
    noise = imputation_noise(images, options.seed)
    if options.std is not None:
        noise = noise / _per_channel(options.std, images)
    pixels = images.cpu().double().numpy()

    def paint(index: Tensor, kept: Tensor) -> Tensor:
        masks = kept[:, 0].cpu().numpy()
        filled = [impute(pixels[i], mask) for i, mask in zip(index.tolist(), masks, strict=True)]
        return torch.from_numpy(np.stack(filled)).to(images) + noise[index] * ~kept

    return paint


ZERO = Fill(_zero, one_empty_image=True)
BLACK = Fill(_black, one_empty_image=True, in_image_space=True)
BLURRED = Fill(_blurred)
IMPUTED = Fill(_imputed)


def impute(image: NDArray[Any], kept: NDArray[np.bool_]) -> NDArray[np.float64]:
    """An image whose removed pixels are the weighted means of their neighbours, all of them at once.

    ROAD (Rong et al., ICML 2022), section 5: a removed pixel is the mean of its eight neighbours, those beside it with
    weight 1/6, the diagonal ones with 1/12, those beyond the border without any. Where neighbours were removed too
    this is a sparse linear system.

    Args:
        image: [C, H, W].
        kept: [H, W]; at least one pixel is kept and one removed.

    Returns:
        float64 [C, H, W].
    """
    channels, height, width = image.shape
    values = image.reshape(channels, -1).T.astype(np.float64)  # [H·W, C]
    removed, known = np.flatnonzero(~kept), np.flatnonzero(kept)
    equations = _neighbour_equations(height, width)[removed]
    factors = splu(  # symmetric and diagonally dominant: neither pivots nor columns of AᵀA are needed
        equations[:, removed].tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    values[removed] = factors.solve(-(equations[:, known] @ values[known]))
    return values.T.reshape(channels, height, width)


def imputation_noise(images: Tensor, seed: int) -> Tensor:
    """Gaussian noise like the images, of deviation 0.01, that follows from each image's pixels and the seed alone."""
    generator = torch.Generator()
    fields = []
    for image in images.float().cpu().numpy():
        generator.manual_seed(zlib.crc32(image.tobytes(), seed))
        fields.append(torch.randn(image.shape, generator=generator))
    return NOISE * torch.stack(fields).to(images)


@lru_cache(maxsize=4)
def _neighbour_equations(height: int, width: int) -> Any:
    """Σ_q w_pq (x_p - x_q) = 0 of every pixel p over its neighbours q: a sparse matrix [H·W, H·W]."""
    rows, columns = (sparse.diags_array([np.ones(n - 1)] * 2, offsets=[-1, 1]) for n in (height, width))
    beside = sparse.kron(rows, sparse.eye_array(width)) + sparse.kron(sparse.eye_array(height), columns)
    weights = NEXT * beside + DIAGONAL * sparse.kron(rows, columns)
    return (sparse.diags_array(weights.sum(1)) - weights).tocsr()


def _over(images: Tensor, background: Tensor) -> Paint:
    """Kept pixels of the images over a background that broadcasts to them."""
    backgrounds = background.expand_as(images)
    return lambda index, kept: torch.where(kept, images[index], backgrounds[index])


def _per_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    """Numbers as a tensor [C, 1, 1] like the images."""
    if len(values) != images.shape[1]:
        raise InputError(f"mean and std have {len(values)} numbers, but the images {images.shape[1]} channels.")
    return images.new_tensor(values)[:, None, None]
