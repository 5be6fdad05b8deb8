"""Augmentation and evaluation pipelines: image, boxes and mask in one geometry.

The only module that knows albumentations.
"""

import os
import random
from collections.abc import Mapping, Sequence
from typing import Any, Literal

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # or it asks the network for a newer version when imported

import albumentations as A
import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from litcam.data.reading import SampleError
from litcam.errors import InputError

TransformSpec = dict[str, Any]  # {"class_path": "albumentations.HorizontalFlip", "init_args": {"p": 0.5}}

_CV2 = {"bicubic": cv2.INTER_CUBIC, "bilinear": cv2.INTER_LINEAR, "lanczos": cv2.INTER_LANCZOS4}
_PIL = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
}


class Pipeline:
    """Takes an image with its boxes and its mask through the same geometry.

    Args:
        transforms: of albumentations, in their order.
        name: of the option that they come from, for messages.
    """

    def __init__(self, transforms: Sequence[Any], name: str = "transforms") -> None:
        boxes = A.BboxParams("pascal_voc", clip=True)
        self.compose = A.Compose(list(transforms), bbox_params=boxes, strict=True)
        self.name = name

    def __call__(
        self,
        image: NDArray[np.uint8],
        boxes: NDArray[np.float32] | None,
        mask: NDArray[np.uint8] | None,
        seed: Sequence[int],
        size: tuple[int, int],
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.intp], NDArray[np.uint8] | None]:
        """Transform one image.

        Args:
            image: uint8 [H, W, 3].
            boxes: (x0, y0, x1, y1) [n, 4], or None.
            mask: uint8 [H, W], or None; resized by nearest pixel.
            seed: what is drawn depends on it alone.
            size: (H, W) that has to come out.

        Returns:
            The image [H, W, 3], the boxes cut at its border [m, 4], which of the n those are [m], and the mask [H, W].

        Raises:
            SampleError: if the image comes out with another size or type.
        """
        rng = np.random.default_rng(list(seed))
        # Its own generators would draw the same in every worker, and nothing that a resumed run could draw again.
        self.compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        data: dict[str, Any] = {"image": image}
        if boxes is not None:
            numbered = np.arange(len(boxes), dtype=np.float32)[:, None]  # further columns travel with their box
            data["bboxes"] = np.concatenate([boxes, numbered], axis=1)
        if mask is not None:
            data["mask"] = mask
        data = self.compose(**data)
        self._check(data["image"], size)
        kept = np.zeros((0, 5), dtype=np.float32)
        if len(data.get("bboxes", ())):  # without boxes their further columns are lost
            kept = np.asarray(data["bboxes"], dtype=np.float32)
        # Coordinates go through shares of the side and come back with noise: 0.001 pixels is finer than any annotation.
        return data["image"], kept[:, :4].round(3), kept[:, 4].round().astype(np.intp), data.get("mask")

    def _check(self, image: Any, size: tuple[int, int]) -> None:
        if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3:
            raise SampleError(
                f"{self.name} have to give uint8 images [H, W, 3]: leave Normalize and ToTensorV2 out, "
                "the images are normalised on the device."
            )
        if image.shape[:2] != size:
            height, width = image.shape[:2]
            raise SampleError(
                f"{self.name} give images of {height} by {width}, but the model takes {size[0]} by {size[1]}; "
                "end them with a crop or Resize to that size."
            )


class EvaluationResize(A.DualTransform):  # type: ignore[misc]  # albumentations has no types
    """Resize and centre crop, pixel for pixel as torchvision and timm do it with Pillow's antialiased filters.

    cv2's bicubic skips pixels when it makes images smaller, and albumentations rounds the place of a crop otherwise.

    Args:
        height: of the result.
        width: of the result.
        crop_pct: the share of the resized image's shorter side that the crop keeps; None squashes the whole image,
            whatever its aspect.
        interpolation: ``"bicubic"``, ``"bilinear"`` or ``"lanczos"``.
    """

    def __init__(self, height: int, width: int, crop_pct: float | None, interpolation: str = "bicubic") -> None:
        super().__init__(p=1)
        self.height, self.width, self.crop_pct, self.interpolation = height, width, crop_pct, interpolation

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """The size (width, height) to resize to, and the (left, top) at which the crop begins."""
        if self.crop_pct is None:
            return {"size": (self.width, self.height), "corner": (0, 0)}
        height, width = params["shape"][:2]
        least_height, least_width = int(self.height / self.crop_pct), int(self.width / self.crop_pct)
        if least_height * width <= least_width * height:
            size = least_width, least_width * height // width
        else:
            size = least_height * width // height, least_height
        return {"size": size, "corner": (round((size[0] - self.width) / 2), round((size[1] - self.height) / 2))}

    def apply(
        self, img: NDArray[np.uint8], size: tuple[int, int], corner: tuple[int, int], **params: Any
    ) -> NDArray[np.uint8]:
        return self._crop(np.asarray(Image.fromarray(img).resize(size, _PIL[self.interpolation])), corner)

    def apply_to_mask(
        self, mask: NDArray[np.uint8], size: tuple[int, int], corner: tuple[int, int], **params: Any
    ) -> NDArray[np.uint8]:
        resized = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST_EXACT)  # INTER_NEAREST is half a pixel off
        return self._crop(np.asarray(resized, dtype=np.uint8), corner)

    def apply_to_bboxes(
        self, bboxes: NDArray[np.float64], size: tuple[int, int], corner: tuple[int, int], **params: Any
    ) -> NDArray[np.float64]:
        moved = bboxes.copy()  # in shares of the sides
        moved[:, :4] = (moved[:, :4] * (size * 2) - corner * 2) / ((self.width, self.height) * 2)
        return moved

    def _crop(self, pixels: NDArray[np.uint8], corner: tuple[int, int]) -> NDArray[np.uint8]:
        left, top = corner
        return pixels[top : top + self.height, left : left + self.width]


def default_train_transforms(data_config: Mapping[str, Any]) -> list[Any]:
    """Random resized crop (8 to 100 % of the area), horizontal flip and light colour jitter, at the model's size."""
    _, height, width = data_config["input_size"]
    crop = A.RandomResizedCrop(
        size=(height, width),
        scale=(0.08, 1.0),
        interpolation=_CV2[_interpolation(data_config)],
        mask_interpolation=cv2.INTER_NEAREST_EXACT,  # INTER_NEAREST is half a pixel off
        area_for_downscale="image",
    )
    jitter = A.ColorJitter(brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.8, 1.2), hue=(0, 0), p=0.8)
    return [crop, A.HorizontalFlip(p=0.5), jitter]


def default_eval_transforms(data_config: Mapping[str, Any], resize: Literal["crop", "squash"]) -> list[Any]:
    """The model's own evaluation: ``"crop"`` resizes the shorter side by crop_pct and crops the centre.

    ``"squash"`` resizes to the model's size whatever the aspect, so that nothing is cut off (as the AGCAM protocol).
    """
    _, height, width = data_config["input_size"]
    crop_pct = None if resize == "squash" else float(data_config.get("crop_pct", 0.875))
    return [EvaluationResize(height, width, crop_pct, _interpolation(data_config))]


def build_transforms(specs: Sequence[TransformSpec], name: str) -> list[Any]:
    """Transforms of albumentations as a config describes them.

    Args:
        specs: each with a ``class_path`` (``albumentations.HorizontalFlip``, ``HorizontalFlip``, or
            ``litcam.data.transforms.EvaluationResize``) and ``init_args``; those of ``OneOf`` and its like may hold
            further ones under ``transforms``.
        name: of the option, for messages.

    Raises:
        InputError: for another form, an unknown class, or arguments that it does not take.
    """
    return [_build(spec, name) for spec in specs]


def _build(spec: Any, name: str) -> Any:
    if isinstance(spec, A.BasicTransform | A.BaseCompose):  # jsonargparse builds the inner ones of a config itself
        return spec
    if not isinstance(spec, Mapping) or not isinstance(spec.get("class_path"), str) or set(spec) - _SPEC_KEYS:
        raise InputError(f"{name}: {spec!r} is no transform; write class_path and, if wanted, init_args.")
    class_name = spec["class_path"].removeprefix("albumentations.")
    own = f"{EvaluationResize.__module__}.{EvaluationResize.__name__}"
    # Nothing else is imported: a checkpoint's data must not run code.
    known = EvaluationResize if class_name == own else getattr(A, class_name, None)
    if not isinstance(known, type) or not issubclass(known, A.BasicTransform | A.BaseCompose):
        raise InputError(f"{name}: albumentations has no transform {spec['class_path']!r}.")
    arguments = dict(spec.get("init_args") or {})
    if issubclass(known, A.BaseCompose):
        arguments["transforms"] = build_transforms(arguments.get("transforms", ()), name)
    elif known is not EvaluationResize:
        arguments["strict"] = True  # or what it does not know would only warn
    try:
        return known(**arguments)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{name}: {class_name} does not take these arguments ({reason}).") from error


_SPEC_KEYS = {"class_path", "init_args"}


def _interpolation(data_config: Mapping[str, Any]) -> str:
    name = str(data_config.get("interpolation", "bicubic"))
    return name if name in _PIL else "bicubic"
