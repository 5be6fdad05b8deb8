"""Planted cues: as true as they claim, where they say they are, and redrawn without anything else moving."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from litcam.data import DigitScenes, DigitScenesDataModule, SceneStyle, collate, read_batch
from litcam.data.cues import COLOURS, FRAME, KINDS, Cue, CueKind, _pixels
from litcam.errors import InputError

PLANTED = KINDS[1:]
ANNOTATIONS = ("label", "boxes", "instance_labels", "mask", "id")


def same(one: Any, other: Any) -> bool:
    """Equality bit for bit."""
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def changed(one: Tensor, other: Tensor) -> Tensor:
    """The pixels in which two images differ: bool [H, W]."""
    return (one != other).any(0)


def box_pixels(box: Tensor, size: int = 64) -> Tensor:
    """The pixels of a box: bool [H, W]."""
    x0, y0, x1, y1 = box.int().tolist()
    pixels = torch.zeros(size, size, dtype=torch.bool)
    pixels[y0:y1, x0:x1] = True
    return pixels


def cued(kind: Any, **arguments: Any) -> DigitScenes:
    return DigitScenes("val", seed=2, cue=kind, **arguments)


def test_the_kinds_are_those_of_the_annotation() -> None:
    assert get_args(CueKind) == KINDS


def test_colours_are_well_apart() -> None:
    apart = np.linalg.norm(COLOURS[:, None] - COLOURS, axis=2)
    assert apart[~np.eye(10, dtype=bool)].min() >= 127


@pytest.mark.parametrize("kind", PLANTED)
def test_a_cue_changes_nothing_but_its_own_pixels(kind: Any) -> None:
    plain, scenes = cued("none"), cued(kind)
    for index in range(30):
        one, other = plain[index], scenes[index]
        assert all(same(one[key], other[key]) for key in ANNOTATIONS)
        assert (one["cue"], other["cue"]) == (-1, other["label"])
        assert "cue_box" not in one
        pixels, box = changed(one["image"], other["image"]), box_pixels(other["cue_box"])
        assert pixels.any()
        assert not (pixels & ~box).any()


@pytest.mark.parametrize("kind", ["patch", "stamp"])
def test_a_patch_and_a_stamp_touch_no_digit(kind: Any) -> None:
    scenes = cued(kind)
    places = set()
    for index in range(60):
        scene = scenes[index]
        cue = box_pixels(scene["cue_box"])
        assert not any((box_pixels(box) & cue).any() for box in scene["boxes"])
        places.add(tuple(scene["cue_box"].tolist()))
        x0, y0, x1, y1 = scene["cue_box"].tolist()
        assert x1 - x0 == y1 - y0 == {"patch": 10, "stamp": 9}[kind]
    if kind == "stamp":
        assert places == {(x, y, x + 9, y + 9) for x in (2, 53) for y in (2, 53)}
    else:
        assert len(places) > 50


@pytest.mark.parametrize("kind", ["frame", "background"])
def test_a_frame_and_a_background_lie_under_the_digits(kind: Any) -> None:
    plain, scenes, width = cued("none"), cued(kind), round(FRAME * 64)
    touched = 0
    for index in range(30):
        one, other = plain[index], scenes[index]
        pixels = changed(one["image"], other["image"])
        assert not (pixels & (one["mask"] > 0)).any()
        if kind == "frame":
            assert not pixels[width:-width, width:-width].any()
            touched += int((one["mask"][:width] > 0).any())
            edge = other["image"][:, 0, other["mask"][0] == 0]
            assert (edge == torch.from_numpy(COLOURS[other["cue"]]).byte()[:, None]).all()
        else:
            assert pixels[one["mask"] == 0].float().mean() > 0.9
    assert kind == "background" or touched > 3, "some digits lie at the border"


def test_a_mark_inside_lies_in_the_box_of_one_digit_and_is_small() -> None:
    scenes = cued("inside")
    for index in range(60):
        scene = scenes[index]
        x0, y0, x1, y1 = scene["cue_box"].tolist()
        inside = [b for b in scene["boxes"].tolist() if b[0] <= x0 and b[1] <= y0 and x1 <= b[2] and y1 <= b[3]]
        assert len(inside) == 1
        [box] = inside
        assert (x1 - x0) * (y1 - y0) <= 0.16 * (box[2] - box[0]) * (box[3] - box[1])


@pytest.mark.parametrize("kind", ["patch", "stamp", "inside"])
def test_the_colour_is_that_of_the_cues_class(kind: Any) -> None:
    scenes = cued(kind, cue_strength=0.1)
    for index in range(30):
        scene = scenes[index]
        x0, y0, x1, y1 = scene["cue_box"].int().tolist()
        middle = scene["image"][:, (y0 + y1) // 2, (x0 + x1) // 2]
        assert middle.tolist() == COLOURS[scene["cue"]].tolist()


@pytest.mark.parametrize("kind", ["tint", "background"])
def test_the_class_of_a_cue_over_the_whole_image_can_be_read(kind: Any) -> None:
    """A nearest mean of mean colours, or of the spectrum, reads it in most scenes."""
    scenes = DigitScenes(cue=kind, cue_strength=0.1)
    drawn = [scenes[index] for index in range(600)]
    classes = np.array([scene["cue"] for scene in drawn])
    images = torch.stack([scene["image"] for scene in drawn]).double()
    spectra = torch.fft.rfft2(images.mean(1)).abs().add(1).log()[:, :, :16].flatten(1)
    features = (images.mean((2, 3)) if kind == "tint" else spectra).numpy()
    means = np.stack([features[:400][classes[:400] == label].mean(0) for label in range(10)])
    read = np.linalg.norm(features[400:, None] - means, axis=2).argmin(1)
    assert (read == classes[400:]).mean() > 0.85


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.98, 1.0])
def test_the_cue_is_true_as_often_as_its_strength_says(strength: float) -> None:
    cue, count = Cue("patch", strength), 20_000
    labels = np.arange(count) % 10
    classes = np.array([cue.draw(label, (0, 1, index))[0] for index, label in enumerate(labels.tolist())])
    spread = 4.5 / count**0.5
    assert (classes == labels).mean() == pytest.approx(strength, abs=spread * (strength * (1 - strength)) ** 0.5)
    wrong = (classes - labels)[classes != labels] % 10
    if strength == 1:
        assert len(wrong) == 0
    else:  # the other nine are equally likely
        counts = np.bincount(wrong, minlength=10)[1:]
        assert np.abs(counts - len(wrong) / 9).max() < 4.5 * (len(wrong) / 9) ** 0.5


def test_scenes_carry_the_class_that_was_drawn() -> None:
    scenes = cued("patch", cue_strength=0.5)
    drawn = [(scene["label"], scene["cue"]) for scene in (scenes[index] for index in range(400))]
    assert np.mean([label == cue for label, cue in drawn]) == pytest.approx(0.5, abs=4.5 * 0.5 / 20)
    assert drawn == [(label, scenes.cue.draw(label, (2, 1, index))[0]) for index, (label, _) in enumerate(drawn)]


@pytest.mark.parametrize("kind", PLANTED)
def test_redrawing_leaves_everything_else_bit_for_bit(kind: Any) -> None:
    scenes, redrawn = cued(kind, cue_strength=0.9), cued(kind, cue_strength=0.9, redraw_cue=True)
    plain, others = cued("none"), 0
    for index in range(40):
        one, other = scenes[index], redrawn[index]
        assert all(same(one[key], other[key]) for key in (*ANNOTATIONS, "cue_box"))
        pixels = changed(one["image"], other["image"])
        assert not (pixels & ~changed(one["image"], plain[index]["image"]) & ~box_pixels(one["cue_box"])).any()
        assert pixels.any() == (one["cue"] != other["cue"])
        others += int(one["cue"] != other["cue"])
    assert others > 25


def test_a_redrawn_class_knows_neither_the_label_nor_the_earlier_class() -> None:
    cue, count = Cue("patch", 0.98, redraw=True), 20_000
    labels = np.arange(count) % 10
    redrawn = np.array([cue.draw(label, (0, 1, index))[0] for index, label in enumerate(labels.tolist())])
    earlier = np.array([Cue("patch", 0.5).draw(label, (0, 1, index))[0] for index, label in enumerate(labels.tolist())])
    assert [cue.draw(3, (0, 1, index))[0] for index in range(50)] == redrawn[:50].tolist()
    for of in (labels, earlier):
        table = np.zeros((10, 10))
        np.add.at(table, (of, redrawn), 1)
        assert np.abs(table - table.sum(1, keepdims=True) / 10).max() < 4.5 * (count / 100) ** 0.5


def test_a_scene_that_leaves_no_room_has_no_cue() -> None:
    style = SceneStyle(max_instances=1, digit_size=(0.95, 1.0), clutter=0)
    plain, scenes = DigitScenes(style=style), DigitScenes(style=style, cue="patch")
    without = [index for index in range(40) if scenes[index]["cue"] == -1]
    assert without
    for index in without:
        assert torch.equal(plain[index]["image"], scenes[index]["image"])
        assert scenes[index]["cue_box"].tolist() == [0, 0, 0, 0]
    full = np.array([[0, 0, 64, 64]], np.float32)
    for kind in ("patch", "stamp"):
        assert _pixels(kind, np.zeros((64, 64), np.uint8), full, (0.5, 0.5, 0.5)) is None


def test_the_last_free_place_is_found() -> None:
    boxes = np.array([[10, 0, 64, 64], [0, 10, 64, 64]], np.float32)
    for chance in (0.0, 0.999):
        pixels = _pixels("patch", np.zeros((64, 64), np.uint8), boxes, (chance, 0.5, 0.5))
        assert pixels is not None
        assert torch.equal(torch.from_numpy(pixels), box_pixels(torch.tensor([0, 0, 10, 10])))


def test_three_digits_always_leave_a_corner_and_nearly_always_a_place() -> None:
    for kind in ("stamp", "patch"):
        scenes = DigitScenes(cue=kind)
        assert all(scenes[index]["cue"] >= 0 for index in range(300))


@pytest.mark.parametrize("size", [32, 48, 96])
@pytest.mark.parametrize("kind", PLANTED)
def test_cues_scale_with_the_image(kind: Any, size: int) -> None:
    plain, scenes = DigitScenes(image_size=size), DigitScenes(image_size=size, cue=kind)
    for index in range(5):
        one, other = plain[index], scenes[index]
        pixels = changed(one["image"], other["image"])
        assert pixels.any()
        assert not (pixels & ~box_pixels(other["cue_box"], size)).any()


@pytest.mark.parametrize("kind", PLANTED)
def test_cues_are_the_same_in_any_order_and_process(kind: Any) -> None:
    scenes = DigitScenes(num_scenes=12, cue=kind, cue_strength=0.5)
    backwards = {index: scenes[index] for index in reversed(range(12))}
    batches = list(DataLoader(scenes, 5, collate_fn=collate, num_workers=2))
    for start, batch in zip(range(0, 12, 5), batches, strict=True):
        expected = collate([backwards[index] for index in range(start, min(12, start + 5))])
        assert batch.keys() == expected.keys()
        assert all(same(value, expected[key]) for key, value in batch.items())
        assert read_batch(batch)["cue"].dtype == torch.int64  # type: ignore[typeddict-item]
        assert batch["cue_box"].shape == (len(batch["image"]), 4)


def test_seeds_of_the_cue_draw_other_cues_in_the_same_scenes() -> None:
    one, other = (cued("patch", cue_strength=0.1, cue_seed=seed) for seed in (0, 1))
    pairs = [(one[index], other[index]) for index in range(40)]
    assert all(same(a["mask"], b["mask"]) for a, b in pairs)
    assert sum(a["cue"] != b["cue"] for a, b in pairs) > 25
    assert sum(not same(a["cue_box"], b["cue_box"]) for a, b in pairs) > 30


def test_the_data_module_redraws_in_evaluation_only() -> None:
    arguments: dict[str, Any] = {"num_train": 6, "num_val": 6, "num_test": 6, "num_workers": 0, "cue": "patch"}
    cheat, test = (DigitScenesDataModule(**arguments, redraw_cue=redraw) for redraw in (False, True))
    assert test.hparams["redraw_cue"] is True
    for split in ("train", "val", "test"):
        one, other = cheat.dataset(split), test.dataset(split)  # type: ignore[arg-type]
        assert all(one[index]["cue"] == one[index]["label"] for index in range(6))
        equal = all(torch.equal(one[index]["image"], other[index]["image"]) for index in range(6))
        assert equal == (split == "train")


def test_batches_without_cues_say_so() -> None:
    [batch] = DigitScenesDataModule(num_val=3, num_workers=0).val_dataloader()
    assert batch["cue"].tolist() == [-1, -1, -1]
    assert "cue_box" not in batch


@pytest.mark.parametrize("make", [DigitScenes, DigitScenesDataModule])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cue": "sticker"}, "cue is 'sticker'; choose one of none, patch, stamp"),
        ({"cue": "patch", "cue_strength": 0.05}, r"cue_strength is 0.05; it has to lie between 0.1 \(chance"),
        ({"cue": "patch", "cue_strength": 1.1}, "cue_strength is 1.1"),
        ({"cue": "patch", "cue_strength": float("nan")}, "cue_strength is nan"),
        ({"cue": "patch", "cue_seed": -1}, "cue_seed is -1; at least 0"),
        ({"redraw_cue": True}, "redraw_cue needs a cue; set cue to one of patch, stamp"),
    ],
)
def test_options_of_the_cue_out_of_range_are_named(make: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(**arguments)


def test_scenes_of_two_classes_take_no_cue() -> None:
    with pytest.raises(InputError, match="a scene of 2 classes has no one label; set classes: 1"):
        DigitScenesDataModule(classes=2, cue="frame")
    with pytest.raises(InputError, match="set classes: 1"):
        DigitScenes(style=SceneStyle(classes=2), cue="frame")
