"""Pipelines: the model's own evaluation to the pixel, and transforms as a config writes them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from picture_cases import CONFIG, Pictures, save_picture
from PIL import Image
from timm.data import create_transform

from litcam.data import Record
from litcam.data.transforms import Pipeline, build_transforms, default_eval_transforms, default_train_transforms
from litcam.errors import InputError

FLIP = {"class_path": "albumentations.HorizontalFlip", "init_args": {"p": 1.0}}
RESIZE = {"class_path": "Resize", "init_args": {"height": 48, "width": 48}}


def noise(width: int, height: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth random picture."""
    coarse = np.random.default_rng(width * height).integers(256, size=(9, 9, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def run(pipeline: Pipeline, image: Any, seed: int = 0, size: tuple[int, int] = (48, 48)) -> Any:
    return pipeline(image, None, None, (seed, 0), size)[0]


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 1.0])
@pytest.mark.parametrize("size", [(97, 61), (61, 97), (100, 100), (40, 33), (53, 300)])
def test_the_evaluation_is_timms_own_to_the_pixel(size: tuple[int, int], crop_pct: float, interpolation: str) -> None:
    config = {**CONFIG, "crop_pct": crop_pct, "interpolation": interpolation}
    image = noise(*size)
    theirs = create_transform(
        config["input_size"], interpolation=interpolation, mean=(0, 0, 0), std=(1, 1, 1), crop_pct=crop_pct
    )(Image.fromarray(image))
    ours = run(Pipeline(default_eval_transforms(config, "crop")), image)
    assert np.array_equal(ours, (255 * theirs).round().byte().permute(1, 2, 0).numpy())


def test_squashing_keeps_everything_and_oblong_models_are_covered() -> None:
    image = noise(90, 50)
    squashed = run(Pipeline(default_eval_transforms(CONFIG, "squash")), image)
    assert np.array_equal(squashed, np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BICUBIC)))
    oblong = {**CONFIG, "input_size": (3, 32, 64)}
    for transforms in (default_eval_transforms(oblong, "crop"), default_train_transforms(oblong)):
        assert run(Pipeline(transforms), image, size=(32, 64)).shape == (32, 64, 3)


def test_what_is_drawn_follows_from_the_seed_alone() -> None:
    pipeline, image = Pipeline(default_train_transforms(CONFIG)), noise(90, 70)
    first = [run(pipeline, image, seed) for seed in range(8)]
    again = [run(Pipeline(default_train_transforms(CONFIG)), image, seed) for seed in reversed(range(8))]
    assert all(np.array_equal(one, other) for one, other in zip(first, reversed(again), strict=True))
    assert len({picture.tobytes() for picture in first}) == 8


def test_transforms_of_a_config_are_built_nested_ones_too() -> None:
    image = noise(48, 48)
    assert np.array_equal(run(Pipeline(build_transforms([FLIP], "train_transforms")), image), image[:, ::-1])
    nested = {"class_path": "OneOf", "init_args": {"transforms": [FLIP, FLIP], "p": 1.0}}
    assert np.array_equal(run(Pipeline(build_transforms([nested], "train_transforms")), image), image[:, ::-1])


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"class_path": "HorizontalFlop"}, "eval_transforms: albumentations has no transform 'HorizontalFlop'"),
        ({"class_path": "os.system", "init_args": {"command": "ls"}}, "albumentations has no transform 'os.system'"),
        ({"class_path": "cv2"}, "albumentations has no transform 'cv2'"),
        ({"class_path": "HorizontalFlip", "init_args": {"probability": 1}}, "HorizontalFlip does not take these.*prob"),
        ({"class_path": "HorizontalFlip", "init_args": {"p": "often"}}, "HorizontalFlip does not take these arguments"),
        ({"class_path": "Resize"}, "Resize does not take these arguments"),
        ({"HorizontalFlip": {}}, "is no transform; write class_path"),
        ("HorizontalFlip", "is no transform; write class_path"),
    ],
)
def test_transforms_that_do_not_exist_are_named(spec: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_transforms([spec], "eval_transforms")


def test_pipelines_that_do_not_end_in_the_models_images_are_named(tmp_path: Path) -> None:
    record = Record(save_picture(tmp_path / "a.png", (80, 60)), (0,), "a")
    with pytest.raises(InputError, match=r"^eval_transforms give images of 60 by 80"):
        list(Pictures([record], eval_transforms=[FLIP], num_workers=1).val_dataloader())
    with pytest.raises(InputError, match="train_transforms give images of 60 by 80, but the model takes 48 by 48"):
        Pictures([record], train_transforms=[FLIP]).dataset("train")[0]
    normalize = {"class_path": "Normalize"}
    with pytest.raises(InputError, match=r"eval_transforms have to give uint8 images .*leave Normalize and ToTensorV2"):
        Pictures([record], eval_transforms=[RESIZE, normalize]).dataset("val")[0]
    assert Pictures([record], train_transforms=[RESIZE, FLIP]).dataset("train")[0]["image"].shape == (3, 48, 48)
