"""The place of the patches: that the patch tokens lie, row by row, on the images as the caller gave them.

Images of stripes are sent as far as the first block, one for each binary digit of the patches' rows and columns. The
stripes have to reach the patch embedding where they were, and every patch token has to answer with its own digits. No
flip, crop, transposition or other order of tokens would do that; a change of size that keeps the whole image does.
Where the images reached the patch embedding as they were, this is proven once for their size.
"""

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from math import ceil, log2
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from litcam.errors import UnsupportedModelError
from litcam.vit.context import eager
from litcam.vit.hooks import first_argument
from litcam.vit.model import ViT
from litcam.vit.threads import in_this_thread

_SILENT = 1e-3  # of the strongest answer: a prefix token's at most
_ALIKE = 0.95  # correlation of an image with itself after it was resized
_RIGHT = 0.9  # of the answers to a pattern of stripes: convolutional stems look over the edge of a patch
_KEPT = 0.95  # of the pixels of such a pattern: a change of size may move an edge by less than a pixel

_proven: "WeakKeyDictionary[nn.Module, set[tuple[tuple[int, ...], tuple[int, int]]]]" = WeakKeyDictionary()


def prove_place(
    vit: ViT, module: nn.Module, images: Tensor, embedded: tuple[int, int] | None, in_place: bool, tokens: int
) -> tuple[int, int]:
    """The patch grid of images, proven to lie on them.

    Args:
        vit: the model.
        module: what was called with the images.
        images: [B, 3, H, W].
        embedded: the size of the images that were cut into patches.
        in_place: whether those were these images.
        tokens: how many there are with the prefix tokens.

    Returns:
        Rows and columns.

    Raises:
        UnsupportedModelError: if the tokens are not those of a grid of patches over the whole image.
    """
    size = (images.shape[-2], images.shape[-1])
    grid = vit.grid(embedded or size)
    if grid[0] * grid[1] + vit.num_prefix_tokens != tokens:
        raise _refusal(vit, module, f"has {tokens} tokens, and not {vit.num_prefix_tokens} and {grid[0]}x{grid[1]}")
    if len(images) == 0:
        return grid
    key = (tuple(images.shape[1:]), grid)
    proven = _proven.setdefault(module, set())
    if in_place and key in proven:
        return grid
    seen = _Answers.of(vit, module, _stripes(images, grid))
    if seen is None or not seen.in_order(grid, vit.num_prefix_tokens) or not (in_place or seen.kept_in_place(grid)):
        raise _refusal(vit, module, f"does not look at its {grid[0]}x{grid[1]} patches where they lie in the image")
    if in_place:
        proven.add(key)
    return grid


def lies_on(prepared: Tensor, images: Tensor) -> bool:
    """Whether prepared images [B, C, H', W'] show the same as images [B, C, H, W], at the same places of the whole.

    They may be normalised and resized: each has to be more like its own image than like that image turned or mirrored,
    by the correlation of their brightness.
    """
    if len(prepared) != len(images) or not images.is_floating_point():
        return False
    if prepared.shape == images.shape and torch.equal(prepared, images.to(prepared)):
        return True
    size = prepared.shape[-2:]
    bright = _standardised(prepared.float().mean(1))
    whole = images.to(prepared.device).float().mean(1, keepdim=True)
    alike = [
        (bright * _standardised(nn.functional.interpolate(turned, size, mode="bilinear", antialias=True)[:, 0]))
        .mean((-2, -1))
        .abs()
        for turned in _turned(whole)
    ]
    return bool((alike[0] > _ALIKE).all() and (alike[0] >= torch.stack(alike).amax(0)).all())


def _turned(images: Tensor) -> list[Tensor]:
    """Images as they are, and turned and mirrored in the seven other ways."""
    return [side.flip(dims) for side in (images, images.transpose(-2, -1)) for dims in ((), (-1,), (-2,), (-2, -1))]


def _standardised(images: Tensor) -> Tensor:
    """Images [B, H, W] of mean 0 and deviation 1; one without contrast is all 1, as is any that it is compared with."""
    spread = images.std((-2, -1), correction=0, keepdim=True)
    centred = images - images.mean((-2, -1), keepdim=True)
    return torch.where(spread > 0, centred / spread, torch.ones_like(centred))


def _digits(grid: tuple[int, int]) -> Tensor:
    """The binary digits, as ±1, of the row and the column of each patch: [n, gh, gw]."""
    digits = []
    for dim, count in enumerate(grid):
        numbers = torch.arange(count).unsqueeze(1 - dim).expand(grid)
        digits += [(numbers >> digit) % 2 * 2 - 1 for digit in range(ceil(log2(count)))]
    return torch.stack(digits) if digits else torch.ones(1, *grid, dtype=torch.long)


def _stripes(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Images [2n, 3, H, W] around the mean of some others: n patterns of stripes, and the same with the sign turned."""
    first = images[:1].detach()
    signs = _signs(grid, (first.shape[-2], first.shape[-1]))
    spread = first.float().std() / 2
    patterns = signs[:, None].to(first) * torch.where(spread > 0, spread, torch.ones_like(spread)).to(first)
    base = first.mean((-2, -1), keepdim=True)
    return torch.cat([base + patterns, base - patterns])


class _Entered(Exception):
    """Ends a forward where the first block begins."""


def _signs(grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The stripes of all digits, as ±1: [n, H, W]."""
    return nn.functional.interpolate(_digits(grid)[None].float(), size=size, mode="nearest-exact")[0]


@dataclass(frozen=True)
class _Answers:
    """What tells n images of stripes from the n with the sign turned.

    Attributes:
        pixels: [n, C, H, W], of what is cut into patches; None where that is no image.
        tokens: [n, N, D], of the tokens that enter the first block.
    """

    pixels: Tensor | None
    tokens: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, vit: ViT, module: nn.Module, images: Tensor) -> "_Answers | None":
        """Those to images [2n, C, H, W]; None where the module does not hand all of them on."""
        embedded: list[Tensor] = []
        entered: list[Tensor] = []

        def keep(embedding: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            embedded.append(first_argument(arguments, keywords))

        def stop(block: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
            entered.append(first_argument(arguments, keywords))
            raise _Entered

        with ExitStack() as context:
            if vit.embedding is not None:
                context.callback(vit.embedding.register_forward_pre_hook(in_this_thread(keep), with_kwargs=True).remove)
            context.callback(vit.blocks[0].register_forward_pre_hook(in_this_thread(stop), with_kwargs=True).remove)
            context.enter_context(eager())
            context.enter_context(suppress(_Entered))
            module(images)
        if not entered or len(entered[0]) != len(images):
            return None
        image = next((x for x in embedded if isinstance(x, Tensor) and x.ndim == 4 and len(x) == len(images)), None)
        return cls(None if image is None else _halves_apart(image), _halves_apart(entered[0]))

    def kept_in_place(self, grid: tuple[int, int]) -> bool:
        """Whether the stripes have reached the patch embedding where they were, in some channel at least."""
        if self.pixels is None:
            return True  # the tokens alone tell
        signs = _signs(grid, (self.pixels.shape[-2], self.pixels.shape[-1])).to(self.pixels)[:, None]
        along = (self.pixels * signs).mean((0, 2, 3), keepdim=True).sign()
        right = ((self.pixels * along * signs) > 0).double().mean((2, 3))  # [n, C]
        return bool((right >= _KEPT).all(0).any())

    def in_order(self, grid: tuple[int, int], prefix: int) -> bool:
        """Whether the patch tokens answer, each with its own digits, and the prefix tokens are silent."""
        strength = float(self.tokens.abs().amax())
        if strength == 0 or float(self.tokens[:, :prefix].abs().sum()) > _SILENT * strength:
            return False
        signs = _digits(grid).flatten(1).to(self.tokens)  # [n, patches]
        along = (self.tokens[:, prefix:] * signs[..., None]).mean((0, 1))  # what a token gains where its digit is one
        right = ((self.tokens[:, prefix:] @ along) * signs) > 0
        return bool((right.double().mean(1) >= _RIGHT).all())


def _halves_apart(batch: Tensor) -> Tensor:
    first, second = batch.detach().double().chunk(2)
    return first - second


def _refusal(vit: ViT, module: nn.Module, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(module).__name__}: its {type(vit.net).__name__} {reason}: a map could not be laid on the image. "
        "Supported are modules that hand on the images as they are, or normalised or resized as a whole."
    )
