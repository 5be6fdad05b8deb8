"""DigitScenes: reproducible, annotated to the pixel, and without the biases that would flatter a heatmap."""

from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import torch

from litcam.classifier import ViTClassifier
from litcam.data import DigitScenes, DigitScenesDataModule, SceneStyle, box_regions, collate
from litcam.data import digits as digits_module
from litcam.data.digits import _SPLIT_SHARES, _source_digits
from litcam.errors import InputError
from litcam.explainers.controls import Center
from litcam.heatmaps import upsample
from litcam.metrics import Localization


def test_the_same_seed_gives_the_same_scenes_bit_for_bit_in_any_order() -> None:
    first, second = DigitScenes(seed=3), DigitScenes(seed=3)
    backwards = {index: second[index] for index in reversed(range(10))}
    for index in range(10):
        for key, value in first[index].items():
            other = backwards[index][key]
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other


def test_scenes_are_those_of_every_earlier_version() -> None:
    """Else results of different days would not compare. Of images the mean: their last bits depend on the CPU."""
    annotations, brightness = sha256(), []
    for split in _SPLIT_SHARES:
        scenes = DigitScenes(split, seed=5)
        for index in range(20):
            scene = scenes[index]
            annotations.update(
                bytes([scene["label"]]) + scene["boxes"].numpy().tobytes() + scene["mask"].numpy().tobytes()
            )
            brightness.append(scene["image"].double().mean().item())
    assert annotations.hexdigest()[:16] == "7ce1a8af943d9618"
    assert brightness[:3] == pytest.approx([88.808268, 90.900960, 70.509766], abs=1e-3)
    assert np.mean(brightness) == pytest.approx(85.664865, abs=1e-3)


def test_seeds_splits_and_indices_give_different_scenes() -> None:
    images = [
        DigitScenes(split, seed=seed)[index]["image"]
        for split in ("train", "val")
        for seed in (0, 1)
        for index in (0, 1)
    ]
    assert all(not torch.equal(one, other) for i, one in enumerate(images) for other in images[:i])


def test_the_splits_share_no_source_digit_and_use_them_all() -> None:
    digits = {split: {digit.tobytes() for digit in _source_digits(split)[0]} for split in _SPLIT_SHARES}
    assert not digits["train"] & digits["val"]
    assert not digits["train"] & digits["test"]
    assert not digits["val"] & digits["test"]
    assert sum(len(_source_digits(split)[0]) for split in _SPLIT_SHARES) == 1797


@pytest.mark.parametrize(("classes", "expected"), [(1, {1, 2, 3}), (2, {2, 3, 4})])
def test_every_instance_has_its_own_pixels_and_a_tight_box(classes: int, expected: set[int]) -> None:
    scenes = DigitScenes(style=SceneStyle(classes=classes))
    counts = set()
    for index in range(60):
        scene = scenes[index]
        mask, boxes = scene["mask"].numpy(), scene["boxes"].numpy()
        counts.add(len(boxes))
        assert scene["instance_labels"].shape == (len(boxes),)
        assert set(np.unique(mask)) == set(range(len(boxes) + 1))
        for number, (x0, y0, x1, y1) in enumerate(boxes, start=1):
            rows, columns = np.nonzero(mask == number)
            assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
    assert counts == expected


def test_instances_of_a_scene_of_one_class_have_its_label() -> None:
    for index in range(20):
        scene = DigitScenes()[index]
        assert set(scene["instance_labels"].tolist()) == {scene["label"]}


@pytest.mark.parametrize(("max_instances", "most"), [(1, 1), (2, 1), (3, 2), (5, 4)])
def test_a_scene_of_two_classes_has_instances_of_both(max_instances: int, most: int) -> None:
    scenes = DigitScenes(style=SceneStyle(classes=2, max_instances=max_instances, digit_size=(0.2, 0.3)))
    counts: set[int] = set()
    for index in range(100):
        scene = scenes[index]
        assert scene["label"].dtype == torch.bool
        assert scene["label"].shape == (10,)
        assert scene["label"].nonzero().flatten().tolist() == scene["instance_labels"].unique().tolist()
        assert scene["label"].sum() == 2
        counts |= set(scene["instance_labels"].unique(return_counts=True)[1].tolist())
    assert counts == set(range(1, most + 1))


def test_both_classes_find_room_even_where_one_digit_easily_bars_the_other() -> None:
    scenes = DigitScenes(image_size=32, style=SceneStyle(classes=2, max_instances=1, digit_size=(0.5, 0.6)))
    assert all(len(scenes[index]["instance_labels"]) == 2 for index in range(100))


def test_every_pair_of_classes_occurs_equally_often() -> None:
    rng = np.random.default_rng(0)
    pairs = np.zeros((10, 10))
    for _ in range(9_000):
        pairs[tuple(digits_module._draw_classes(rng, 2))] += 1
    assert not pairs.diagonal().any()
    assert abs(pairs[~np.eye(10, dtype=bool)] - 100).max() < 45  # 4.5 standard deviations


def test_each_instance_is_a_digit_of_its_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shown on digits that are upright bars up to class 4 and lying ones from class 5 on."""
    upright = np.zeros((32, 32), np.float32)
    upright[2:30, 12:20] = 1
    bars = np.stack([upright if label < 5 else upright.T for label in range(10)])
    monkeypatch.setattr(digits_module, "_source_digits", lambda split: (bars, list(range(11))))
    scenes = DigitScenes(style=SceneStyle(classes=2, clutter=0))
    for index in range(30):
        scene = scenes[index]
        x0, y0, x1, y1 = scene["boxes"].unbind(1)
        assert torch.equal(y1 - y0 > x1 - x0, scene["instance_labels"] < 5)


def test_an_instance_is_lighter_than_its_surroundings() -> None:
    scenes = DigitScenes(style=SceneStyle(clutter=0, contrast=60, texture=5))
    for index in range(20):
        scene = scenes[index]
        luminance = (scene["image"].float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
        assert luminance[scene["mask"] > 0].mean() > luminance[scene["mask"] == 0].mean() + 30


def test_fog_mixes_white_into_every_pixel_and_moves_nothing() -> None:
    clear, foggy = (DigitScenes(seed=2, style=SceneStyle(fog=fog)) for fog in (0.0, 0.8))
    for index in range(5):
        through, scene = foggy[index], clear[index]
        expected = 0.2 * scene["image"].float() + 0.8 * 255
        assert (through["image"].float() - expected).abs().max() <= 1.2, "the colours are cut to whole numbers twice"
        assert all(torch.equal(through[name], scene[name]) for name in ("boxes", "mask"))
        assert through["label"] == scene["label"]


def test_the_data_module_has_fog_in_every_split() -> None:
    data = DigitScenesDataModule(num_train=2, num_val=2, num_test=2, fog=0.9, num_workers=0)
    data.use_data_config(ViTClassifier("vit_mini_patch8_64", 10, pretrained=False).data_config)
    for split in ("train", "val", "test"):
        assert data.dataset(split)[0]["image"].min() >= 229


def test_the_centre_is_no_better_a_guess_than_elsewhere() -> None:
    scenes = DigitScenes("val")
    batch = collate([{**scenes[index], "image": scenes[index]["image"].float()} for index in range(400)])
    gaussian = torch.exp(-(((torch.arange(8) - 3.5) / 2) ** 2) / 2)
    centre = upsample(torch.outer(gaussian, gaussian).expand(400, -1, -1), (64, 64))
    metric = Localization()
    metric.update(centre, box_regions(batch))
    assert Center.is_control
    assert metric.compute()["pointing_game"] < 0.35


def test_clutter_gives_no_class_away() -> None:
    """Fragments come from digits of all classes, whatever the scene's label."""
    plain, cluttered = (DigitScenes(style=SceneStyle(clutter=clutter)) for clutter in (0, 20))
    changed = [(plain[i]["image"] != cluttered[i]["image"]).any().item() for i in range(20)]
    assert sum(changed) > 10
    assert all(plain[i]["label"] == cluttered[i]["label"] for i in range(20))


def test_scenes_scale_with_the_image() -> None:
    small, large = DigitScenes(image_size=64), DigitScenes(image_size=160)
    sides = [
        np.mean([np.ptp(scenes[i]["boxes"].numpy()[:, [1, 3]], axis=1).mean() for i in range(30)])
        for scenes in (small, large)
    ]
    assert large[0]["image"].shape == (3, 160, 160)
    assert sides[1] / sides[0] == pytest.approx(2.5, rel=0.15)


def test_the_stream_goes_on_beyond_its_length() -> None:
    scenes = DigitScenes(num_scenes=4)
    assert len(scenes) == 4
    assert scenes[4]["id"] == "train-0-000004"
    with pytest.raises(IndexError):
        scenes[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "choose one of train, val, test"),
        ({"num_scenes": 0}, "num_scenes is 0"),
        ({"image_size": 16}, "image_size is 16"),
        ({"style": SceneStyle(classes=2, digit_size=(0.6, 0.7))}, "two digits of 38 pixels have no room in 64"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DigitScenes(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 3}, "classes is 3; choose one of 1, 2"),
        ({"max_instances": 0}, "max_instances is 0"),
        ({"fog": 1.0}, "fog is 1.0; it has to be 0 or more and less than 1"),
        ({"fog": -0.1}, "fog is -0.1"),
        ({"fog": float("nan")}, "fog is nan"),
    ],
)
def test_a_style_out_of_range_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SceneStyle(**arguments)
