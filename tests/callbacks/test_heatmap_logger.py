"""HeatmapLogger: one panel of the same images every epoch, in the run folder and in TensorBoard."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning_cases import (
    Scenes,
    UserModule,
    batches_of,
    digits,
    loader,
    make_trainer,
    tiny_classifier,
    tiny_net,
)
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import litcam
from litcam.callbacks import HeatmapLogger, LocalizationMonitor
from litcam.callbacks import heatmap_logger as drawing
from litcam.callbacks.pictures import Pictures, to_pixels
from litcam.heatmaps import overlay

RED, BLACK, GREEN, ORANGE = (200, 30, 30), (30, 30, 30), (60, 220, 60), (255, 140, 0)


def has(picture: np.ndarray[Any, Any], colour: tuple[int, int, int]) -> bool:
    """Whether a pixel has exactly this colour."""
    return bool((picture == np.array(colour, np.uint8)).all(-1).any())


def caption(entry: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The lowest rows of an entry."""
    return entry[128:]


def read_png(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The arguments of every entry that is drawn."""
    entries: list[dict[str, Any]] = []
    draw = drawing.draw_entry
    names = ("image", "heatmap", "found", "true", "caption")

    def noting(*arguments: Any, **options: Any) -> Any:
        entries.append({**dict(zip(names, arguments, strict=True)), **options})
        return draw(*arguments, **options)

    monkeypatch.setattr(drawing, "draw_entry", noting)
    return entries


def test_the_same_images_are_drawn_every_epoch_and_their_maps_change(
    tmp_path: Path, drawn: list[dict[str, Any]]
) -> None:
    monitor = HeatmapLogger(num_images=4)
    trainer = make_trainer(tmp_path, [monitor], max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(tiny_classifier(lr=0.05), digits(batch_size=2))
    epochs = [drawn[start : start + 4] for start in (0, 4, 8)]
    assert len(drawn) == 12
    for later in epochs[1:]:
        assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(epochs[0], later, strict=True))
        assert any(not np.array_equal(a["heatmap"], b["heatmap"]) for a, b in zip(epochs[0], later, strict=True))
    assert len({entry["image"].tobytes() for entry in epochs[0]}) == 4


def test_one_png_per_epoch_and_one_tensorboard_tag_with_a_step_per_epoch_show_the_same_panel(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [HeatmapLogger(num_images=4)], tensorboard=True, max_epochs=3)
    trainer.fit(UserModule(), loader(), loader())
    folder = Path(trainer.log_dir) / "heatmaps" / "agcam"
    assert sorted(path.name for path in folder.iterdir()) == [f"epoch_00{epoch}.png" for epoch in (1, 2, 3)]
    events = EventAccumulator(str(trainer.log_dir), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["val/agcam/heatmaps"]
    images = events.Images("val/agcam/heatmaps")
    assert [image.step for image in images] == [2, 4, 6]
    for epoch, image in enumerate(images, start=1):
        decoded = np.asarray(Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB"))
        assert np.array_equal(decoded, read_png(folder / f"epoch_00{epoch}.png"))


def test_each_method_has_its_own_tag_and_folder_and_the_test_stage_its_own_name(tmp_path: Path) -> None:
    monitors = [HeatmapLogger(num_images=2), HeatmapLogger("rollout", num_images=2)]
    trainer = make_trainer(tmp_path, monitors, tensorboard=True)
    trainer.test(UserModule(), loader(), verbose=False)
    files = sorted(str(path.relative_to(trainer.log_dir)) for path in Path(trainer.log_dir).rglob("*.png"))
    assert files == ["heatmaps/agcam/test.png", "heatmaps/rollout/test.png"]
    events = EventAccumulator(str(trainer.log_dir)).Reload()
    assert sorted(events.Tags()["images"]) == ["test/agcam/heatmaps", "test/rollout/heatmaps"]


def test_without_a_logger_the_panel_lies_in_the_root_folder_of_the_run(tmp_path: Path) -> None:
    make_trainer(tmp_path, [HeatmapLogger(num_images=2)]).fit(UserModule(), loader(), loader())
    assert (tmp_path / "heatmaps" / "agcam" / "epoch_001.png").is_file()


def test_fast_dev_run_writes_nothing(tmp_path: Path) -> None:
    make_trainer(tmp_path, [HeatmapLogger(num_images=2)], fast_dev_run=True).fit(UserModule(), loader(), loader())
    assert not list(tmp_path.rglob("*.png"))


def test_captions_name_true_and_predicted_class_in_red_where_they_differ(
    tmp_path: Path, drawn: list[dict[str, Any]]
) -> None:
    module, data = tiny_classifier(), digits()
    torch.nn.init.constant_(module.net.head.bias[3:4], 100.0)  # everything is a 3
    monitor = HeatmapLogger(num_images=99)
    make_trainer(tmp_path, [monitor]).validate(module, data, verbose=False)
    labels = torch.cat([batch["label"] for batch in batches_of(data)]).tolist()
    assert len(drawn) == 11
    assert 0 < labels.count(3) < 11
    for index, label in enumerate(labels):
        assert drawn[index]["caption"] == f"{label}, predicted 3 100%"
        (entry,) = (entry for (image, _), entry in monitor.entries.items() if image == index)
        assert has(caption(entry), RED) == (label != 3)
        assert has(caption(entry), BLACK) == (label == 3)


def test_captions_take_the_class_names_of_the_data_module(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    class Named(type(digits())):  # type: ignore[misc]
        class_names = tuple(f"digit {number}" for number in range(10))

    data = Named(8, 4, 4, batch_size=4, num_workers=0)
    make_trainer(tmp_path, [HeatmapLogger(num_images=1)]).validate(tiny_classifier(), data, verbose=False)
    [entry] = drawn
    assert entry["caption"].startswith("digit ")
    assert ", predicted digit " in entry["caption"]


def test_classes_beyond_the_names_are_numbered() -> None:
    trainer: Any = SimpleNamespace(datamodule=None, lightning_module=SimpleNamespace(class_names=["zero", "one"]))
    assert [Pictures(trainer).name(label) for label in (1, 7)] == ["one", "7"]


def test_the_panel_shows_image_map_and_boxes_as_computed_by_hand(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    module, data = tiny_classifier(), digits(num_val=4)
    make_trainer(tmp_path, [HeatmapLogger(num_images=4)]).validate(module, data, verbose=False)
    [batch], [raw] = batches_of(data), list(data.evaluation_dataloader("val"))
    explanation = litcam.create_explainer("agcam", module.net)(batch["image"], batch["label"])
    for index, entry in enumerate(drawn):
        assert np.array_equal(entry["image"], raw["image"][index].permute(1, 2, 0).numpy())
        np.testing.assert_allclose(entry["heatmap"], explanation.upsample((128, 128))[index], atol=1e-5)
        assert entry["true"] == [box[1:] for box in raw["boxes"].tolist() if box[0] == index]
        found = torch.zeros(64, 64, dtype=torch.bool)
        for x0, y0, x1, y1 in entry["found"]:
            found[y0:y1, x0:x1] = True
        hot = explanation.upsample((64, 64))[index] > 0.5
        assert hot.any()
        assert not (hot & ~found).any(), "the boxes surround where the map exceeds the threshold"
    panel = read_png(tmp_path / "heatmaps" / "agcam" / "epoch_000.png")
    assert has(panel, GREEN)
    assert has(panel, ORANGE)


@pytest.mark.parametrize("pairs", [True, False])
def test_true_boxes_are_drawn_where_the_batches_have_them(tmp_path: Path, pairs: bool) -> None:
    make_trainer(tmp_path, [HeatmapLogger(num_images=2)]).validate(UserModule(), loader(pairs=pairs), verbose=False)
    panel = read_png(tmp_path / "heatmaps" / "agcam" / "epoch_000.png")
    assert has(panel, GREEN) is not pairs
    assert has(panel, ORANGE)


def test_the_panel_is_the_same_whether_other_callbacks_are_on(tmp_path: Path) -> None:
    panels = []
    for number, others in enumerate(([], [LocalizationMonitor(), LocalizationMonitor("rollout")])):
        folder = tmp_path / str(number)
        make_trainer(folder, [HeatmapLogger(num_images=3), *others]).fit(UserModule(), loader(), loader())
        panels.append(read_png(folder / "heatmaps" / "agcam" / "epoch_001.png"))
    difference = np.abs(panels[0].astype(int) - panels[1])  # maps of other batches round differently in the last bit
    assert (difference > 0).mean() < 1e-3
    assert difference.max() <= 8


@pytest.mark.parametrize(("num_images", "columns", "tiles"), [(5, 4, (2, 4)), (2, 4, (1, 2)), (3, 1, (3, 1))])
def test_the_panel_has_as_many_rows_and_columns_as_it_needs(
    tmp_path: Path, num_images: int, columns: int, tiles: tuple[int, int]
) -> None:
    monitor = HeatmapLogger(num_images=num_images, columns=columns)
    make_trainer(tmp_path, [monitor]).validate(UserModule(), loader(), verbose=False)
    panel = read_png(tmp_path / "heatmaps" / "agcam" / "epoch_000.png")
    height, width = next(iter(monitor.entries.values())).shape[:2]
    assert (panel.shape[0] // height, panel.shape[1] // width) == tiles


def test_non_square_images_and_bfloat16_are_drawn(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    class Wide(Scenes):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image[:, :32], label

    module = UserModule(tiny_net(img_size=(32, 64)))
    data = torch.utils.data.DataLoader(Wide(4, pairs=True), 2)
    make_trainer(tmp_path, [HeatmapLogger(num_images=4)], precision="bf16-true").validate(module, data, verbose=False)
    assert [entry["image"].shape for entry in drawn] == [(32, 64, 3)] * 4
    assert all(entry["heatmap"].max() == 1 for entry in drawn)


def test_an_entry_shows_the_image_the_overlay_and_the_boxes_side_by_side() -> None:
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, (128, 128, 3), dtype=np.uint8)
    heatmap = generator.random((128, 128)).astype(np.float32)
    entry = drawing.draw_entry(image, heatmap, [[100, 10, 120, 30]], [[16, 32, 64, 96]], "a", right=True)
    assert np.array_equal(entry[:128, :128], image)
    assert np.array_equal(entry[:128, 132:260], overlay(image, heatmap))
    boxes = entry[:128, 264:]
    green, orange = ((boxes == np.array(colour, np.uint8)).all(-1) for colour in (GREEN, ORANGE))
    for mask, (x0, y0, x1, y1) in ((green, (16, 32, 64, 96)), (orange, (100, 10, 120, 30))):
        rows, columns = np.nonzero(mask)
        assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (x0, y0, x1, y1)
        assert not mask[(y0 + y1) // 2, (x0 + x1) // 2], "a frame, not a filled box"


def test_a_long_caption_is_cut_to_the_width_of_its_entry() -> None:
    image, heatmap = np.zeros((64, 64, 3), np.uint8), np.zeros((128, 128), np.float32)
    shapes = [
        drawing.draw_entry(image, heatmap, [], [], name, right=False).shape
        for name in ("short", "a very long class name " * 20)
    ]
    assert shapes[0] == shapes[1]
    entry = drawing.draw_entry(image, heatmap, [], [], "a very long class name " * 20, right=False)
    assert (caption(entry)[:, -3:] == 255).all(), "it does not run out of the picture"


def test_pixels_that_are_not_numbers_are_drawn_black() -> None:
    images = torch.zeros(1, 3, 2, 2)
    images[0, :, 0, 0] = float("nan")
    pixels = to_pixels(images, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert pixels[0, 0, 0].tolist() == [0, 0, 0]
    assert pixels[0, 1, 1].tolist() == [128, 128, 128]
