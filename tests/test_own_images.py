"""Images of one's own: predictions and maps by hand, maps put back where the model saw them, and every kind of file."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import litcam
from litcam import own_images
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule, FolderDataModule, ImageDataModule
from litcam.data.reading import read_image
from litcam.data.transforms import Pipeline, build_transforms, default_eval_transforms
from litcam.errors import InputError
from litcam.heatmaps import overlay, upsample
from litcam.own_images import draw_on_photo, explain_images, find_images, placement

NAMES = ["bird", "black cat", "dog"]
Pixels = np.ndarray[Any, Any]


def picture(width: int = 90, height: int = 60, seed: int = 0) -> Image.Image:
    """A smooth colour picture."""
    coarse = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def save(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, **options)
    return path


def make_module(num_classes: int = 3, multi_label: bool = False) -> ViTClassifier:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        arguments = {"depth": 2, "embed_dim": 24, "num_heads": 2}
        module = ViTClassifier("vit_mini_patch8_64", num_classes, False, arguments, multi_label=multi_label)
        for parameter in module.net.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    return module.eval()


def make_data(folder: Path, **arguments: Any) -> FolderDataModule:
    """A data module of three classes."""
    for split in ("train", "val"):
        for name in NAMES:
            save(folder / split / name / "0.png", picture(8, 8))
    return FolderDataModule(str(folder), num_workers=0, **arguments)


@pytest.fixture
def data(tmp_path: Path) -> FolderDataModule:
    return make_data(tmp_path / "data")


def explain(
    data: ImageDataModule, tmp_path: Path, *paths: Path, methods: tuple[str, ...] = ("agcam",), **options: Any
) -> list[dict[str, Any]]:
    module = options.pop("module", None) or make_module()
    return explain_images(module, data, paths, methods, tmp_path / "out", **options)


def written(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out" / "predictions.json").read_text())  # type: ignore[no-any-return]


def read_png(path: Path) -> Pixels:
    return np.asarray(Image.open(path))


def model_images(data: ImageDataModule, module: ViTClassifier, paths: list[Path]) -> torch.Tensor:
    """Normalised images of the validation transforms."""
    data.use_data_config(module.data_config)
    pipeline = data.pipeline("val")  # type: ignore[attr-defined]
    pixels = [pipeline(read_image(path), None, None, (0,), (64, 64))[0] for path in paths]
    stacked = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
    return data.normalize({"image": stacked})["image"]  # type: ignore[typeddict-item]


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_predictions_and_maps_are_those_of_the_model_and_the_explainers(
    data: FolderDataModule, tmp_path: Path, batch_size: int
) -> None:
    paths = [save(tmp_path / f"photo{i}.png", picture(90 + i, 60 + 10 * i, i)) for i in range(3)]
    module, methods = make_module(), ("agcam", "reciprocam:kernel=dirac", "rollout")
    results = explain(data, tmp_path, *paths, methods=methods, batch_size=batch_size, module=module)
    images = model_images(data, module, paths)
    probabilities = module(images).softmax(1)
    for i, result in enumerate(results):
        assert result["file"] == str(paths[i])
        assert result["size"] == [90 + i, 60 + 10 * i]
        order = probabilities[i].argsort(descending=True).tolist()
        assert [entry["index"] for entry in result["top5"]] == order
        assert [entry["class"] for entry in result["top5"]] == [NAMES[k] for k in order]
        assert [entry["probability"] for entry in result["top5"]] == pytest.approx(probabilities[i][order].tolist())
        assert result["predicted"] == result["targets"] == result["top5"][:1]
    for method, options in (("agcam", {}), ("reciprocam", {"kernel": "dirac"}), ("rollout", {})):
        expected = litcam.create_explainer(method, module, **options)(images).heatmaps
        name = next(text for text in methods if text.startswith(method))
        for i, result in enumerate(results):
            [entry] = result["methods"][name]
            heatmap = np.load(tmp_path / "out" / entry["heatmap"])
            assert heatmap.dtype == np.float32
            assert heatmap.shape == (8, 8)
            np.testing.assert_allclose(heatmap, expected[i].numpy(), rtol=1e-4, atol=1e-6)
            assert entry["degenerate"] is False
    assert written(tmp_path) == {"schema_version": 1, "images": results, "unreadable": []}


def test_the_overlay_has_the_map_on_the_crop_that_the_model_saw_and_the_photo_around_it(
    data: FolderDataModule, tmp_path: Path
) -> None:
    path, module = save(tmp_path / "photo.png", picture(300, 200)), make_module()
    data.use_data_config({**module.data_config, "crop_pct": 0.8})
    module.__class__ = type("Cropping", (ViTClassifier,), {"data_config": {**module.data_config, "crop_pct": 0.8}})
    [result] = explain(data, tmp_path, path, module=module)
    [entry] = result["methods"]["agcam"]
    drawn, photo = read_png(tmp_path / "out" / entry["overlay"]), read_png(path)
    # The height 200 becomes 64 / 0.8 = 80, the crop leaves 64 of it: 160 pixels of the photo, from its centre.
    heatmap = upsample(torch.from_numpy(np.load(tmp_path / "out" / entry["heatmap"])), (64, 64)).numpy()
    enlarged = np.asarray(Image.fromarray(heatmap).resize((160, 160), Image.Resampling.BILINEAR))
    crop = (slice(20, 180), slice(70, 230))
    expected = photo.copy()
    expected[crop] = overlay(photo[crop], enlarged)
    assert np.abs(drawn.astype(int) - expected)[crop].max() <= 3
    outside = np.ones(photo.shape[:2], bool)
    outside[crop] = False
    assert np.array_equal(drawn[outside], photo[outside])


GEOMETRIES: dict[str, tuple[list[dict[str, Any]], tuple[int, int, int, int]]] = {
    "crop": ([], (68, 16, 235, 182)),
    "squash": ([], (0, 0, 300, 200)),
    "small crop": ([{"class_path": "CenterCrop", "init_args": {"height": 64, "width": 64}}], (118, 68, 182, 132)),
    "flip": (
        [
            {"class_path": "Resize", "init_args": {"height": 64, "width": 64}},
            {"class_path": "HorizontalFlip", "init_args": {"p": 1}},
        ],
        (0, 0, 300, 200),
    ),
    "turn": (
        [
            {"class_path": "Resize", "init_args": {"height": 64, "width": 64}},
            {"class_path": "Transpose", "init_args": {"p": 1}},
        ],
        (0, 0, 300, 200),
    ),
    "padding": (
        [
            {"class_path": "LongestMaxSize", "init_args": {"max_size": 64}},
            {"class_path": "PadIfNeeded", "init_args": {"min_height": 64, "min_width": 64}},
        ],
        (0, 0, 300, 200),
    ),
}


@pytest.mark.parametrize("kind", list(GEOMETRIES))
def test_what_the_model_saw_comes_back_to_its_place_in_the_photo(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    specs, (left, top, right, bottom) = GEOMETRIES[kind]
    config = {"input_size": (3, 64, 64), "interpolation": "bicubic", "crop_pct": 64 / 77}
    transforms = build_transforms(specs, "eval") or default_eval_transforms(
        config, "squash" if kind == "squash" else "crop"
    )
    pipeline, photo = Pipeline(transforms), np.asarray(picture(300, 200))
    seen = pipeline(photo, None, None, (0, 0), (64, 64))[0]
    place = placement(pipeline, (200, 300), (64, 64))
    monkeypatch.setattr(own_images, "overlay", lambda image, heatmap: np.repeat(heatmap[..., None], 3, axis=2))
    marked = np.full_like(photo, 255)
    for channel in range(3):
        back = draw_on_photo(marked, torch.tensor(seen[..., channel]) / 256, place)[..., 0]
        rows, columns = np.nonzero(back < 1)  # where there is colour
        found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.subtract(found, (left, top, right, bottom))).max() <= 1
        region = (slice(top + 6, bottom - 6), slice(left + 6, right - 6))
        assert np.abs(256 * back - photo[..., channel])[region].max() < 12


def test_a_squashed_photo_has_colour_up_to_its_border() -> None:
    pipeline = Pipeline(default_eval_transforms({"input_size": (3, 64, 64)}, "squash"))
    place = placement(pipeline, (1067, 1600), (64, 64))
    torch.testing.assert_close(place, torch.eye(2, 3), rtol=0, atol=1e-4)
    drawn = draw_on_photo(np.zeros((1067, 1600, 3), np.uint8), torch.ones(64, 64), place)
    assert drawn.any(-1).all()


def test_a_small_crop_of_a_large_photo_is_found() -> None:
    pipeline = Pipeline(build_transforms([{"class_path": "CenterCrop", "init_args": {"height": 64, "width": 64}}], ""))
    place = placement(pipeline, (6000, 8000), (64, 64))
    expected = torch.tensor([[8000 / 64, 0, 0], [0, 6000 / 64, 0]])
    torch.testing.assert_close(place, expected, rtol=1e-3, atol=1e-2)


def test_transforms_that_bend_the_image_are_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bending = [
        {"class_path": "Resize", "init_args": {"height": 64, "width": 64}},
        {"class_path": "OpticalDistortion", "init_args": {"distort_limit": [0.9, 0.9], "p": 1}},
    ]
    data = make_data(tmp_path / "data", eval_transforms=bending)
    with pytest.raises(InputError, match="None of the 1 files"):
        explain(data, tmp_path, save(tmp_path / "photo.png"))
    assert "eval_transforms do more than resize, crop, pad and turn" in capsys.readouterr().err


def test_transforms_that_an_image_does_not_fit_do_not_stop_the_others(tmp_path: Path) -> None:
    crop = [{"class_path": "CenterCrop", "init_args": {"height": 64, "width": 64}}]
    data = make_data(tmp_path / "data", eval_transforms=crop)
    small, large = save(tmp_path / "small.png"), save(tmp_path / "large.png", picture(100, 100))
    results = explain(data, tmp_path, small, large)
    assert [result["file"] for result in results] == [str(large)]
    [unreadable] = written(tmp_path)["unreadable"]
    assert unreadable["file"] == str(small)


def test_classes_are_named_or_numbered(data: FolderDataModule, tmp_path: Path) -> None:
    path, module = save(tmp_path / "photo.png"), make_module()
    [result] = explain(
        data, tmp_path, path, targets=["dog", 1, "1", "bird"], module=module, methods=("agcam", "center")
    )
    assert [(entry["class"], entry["index"]) for entry in result["targets"]] == [
        ("dog", 2),
        ("black cat", 1),
        ("bird", 0),
    ]
    images = model_images(data, module, [path])
    expected = litcam.create_explainer("agcam", module)(images, torch.tensor([[2, 1, 0]])).heatmaps[0]
    for entry, heatmap in zip(result["methods"]["agcam"], expected, strict=True):
        np.testing.assert_allclose(np.load(tmp_path / "out" / entry["heatmap"]), heatmap, rtol=1e-4, atol=1e-6)
    assert [entry["overlay"] for entry in result["methods"]["agcam"]] == [
        "photo-agcam-dog.png",
        "photo-agcam-black_cat.png",
        "photo-agcam-bird.png",
    ]
    assert len(result["methods"]["center"]) == 3
    assert sum(entry["probability"] for entry in result["targets"]) == pytest.approx(1)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["Blackcat"], "did you mean 'black cat'"),
        (["zebra"], "there are bird, black cat, dog"),
        ([3], "0 to 2"),
        (["-1"], "0 to 2"),
        ([], "targets is empty"),
    ],
)
def test_unknown_classes_are_refused_before_any_work(
    data: FolderDataModule, tmp_path: Path, targets: list[str | int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        explain(data, tmp_path, save(tmp_path / "photo.png"), targets=targets)
    assert not (tmp_path / "out").exists()


def test_a_name_of_two_classes_asks_for_the_index(tmp_path: Path) -> None:
    class Cranes(DigitScenesDataModule):
        class_names = property(lambda data: ["crane", "dog", "crane"])

    path = save(tmp_path / "photo.png")
    with pytest.raises(InputError, match=r"Several classes have the name 'crane'.*0, 2"):
        explain(Cranes(num_workers=0), tmp_path, path, targets=["crane"])
    [result] = explain(Cranes(num_workers=0), tmp_path, path, targets=[0, 2])
    assert len({entry["overlay"] for entry in result["methods"]["agcam"]}) == 2


def test_without_the_data_classes_have_the_modules_names_or_their_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, module = save(tmp_path / "photo.png"), make_module()
    gone = FolderDataModule(str(tmp_path / "gone"), num_workers=0)
    [result] = explain(gone, tmp_path, path, module=module)
    assert result["predicted"][0]["class"] == str(result["predicted"][0]["index"])
    assert "Classes go by their index: the data that name them are not here" in capsys.readouterr().err
    with pytest.raises(InputError, match="give its index"):
        explain(gone, tmp_path, path, module=module, targets=["dog"])
    module.class_names = NAMES
    [result] = explain(gone, tmp_path, path, module=module, targets=["dog"])
    assert result["targets"][0]["index"] == 2


def test_data_of_other_classes_name_none(tmp_path: Path, data: FolderDataModule) -> None:
    [result] = explain(data, tmp_path, save(tmp_path / "photo.png"), module=make_module(5))
    assert [entry["class"] for entry in result["top5"]] == [str(entry["index"]) for entry in result["top5"]]


def test_of_several_labels_all_above_one_half_are_predicted_and_explained(
    data: FolderDataModule, tmp_path: Path
) -> None:
    module = make_module(multi_label=True)
    paths = [save(tmp_path / f"{i}.png", picture(64, 64, i)) for i in range(8)]
    results = explain(data, tmp_path, *paths, module=module)
    images = model_images(data, module, paths)
    probabilities = module(images).sigmoid().detach()
    explainer = litcam.create_explainer("agcam", module)
    counts = set()
    for i, result in enumerate(results):
        found = (probabilities[i] > 0.5).nonzero()[:, 0].tolist() or [int(probabilities[i].argmax())]
        assert sorted(entry["index"] for entry in result["predicted"]) == found
        assert result["targets"] == result["predicted"]
        for entry in result["targets"]:
            assert entry["probability"] == pytest.approx(float(probabilities[i, entry["index"]]))
        for entry in result["methods"]["agcam"]:
            expected = explainer(images[i : i + 1], torch.tensor([entry["index"]])).heatmaps[0]
            np.testing.assert_allclose(
                np.load(tmp_path / "out" / entry["heatmap"]), expected.numpy(), rtol=1e-3, atol=1e-5
            )
        counts.add(len(found))
    assert len(counts) > 1, "images of different numbers of classes were in a batch"


def test_no_label_above_one_half_leaves_the_largest(data: FolderDataModule, tmp_path: Path) -> None:
    module = make_module(multi_label=True)
    torch.nn.init.constant_(module.net.head.bias, -100.0)
    [result] = explain(data, tmp_path, save(tmp_path / "photo.png"), module=module)
    assert result["predicted"] == result["top5"][:1]


def test_bad_files_are_named_and_counted_and_do_not_stop_the_others(
    data: FolderDataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "photos"
    good = [save(folder / "a.png"), save(folder / "below" / "z.jpg")]
    (folder / "empty.png").touch()
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.jpg").write_bytes(good[1].read_bytes()[:-300])
    (folder / "link.png").symlink_to(folder / "nowhere.png")
    (folder / ".hidden.png").touch()
    (folder / "notes.txt").touch()
    save(folder / "thin.png", picture(300, 1))
    results = explain(data, tmp_path, folder)
    assert [result["file"] for result in results] == [str(path) for path in good]
    troubles = {Path(entry["file"]).name: entry["trouble"] for entry in written(tmp_path)["unreadable"]}
    assert sorted(troubles) == ["cut.jpg", "empty.png", "link.png", "text.jpg", "thin.png"]
    printed = capsys.readouterr()
    for trouble in troubles.values():
        assert trouble in printed.err
    assert "2 images explained, 5 could not be read." in printed.out


def test_if_no_file_is_readable_it_says_so(data: FolderDataModule, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(InputError, match="None of the 1 files is a readable image"):
        explain(data, tmp_path, tmp_path / "text.jpg")
    assert len(written(tmp_path)["unreadable"]) == 1


def test_paths_that_are_not_there_are_refused_before_any_work(data: FolderDataModule, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    cases: list[tuple[list[Path], str]] = [
        (
            [save(tmp_path / "photo.png"), tmp_path / "a.jpg", tmp_path / "b"],
            r"no file or folder '.*a.jpg' and no '.*b'",
        ),
        ([tmp_path / "folder"], r"folder '.*folder' has no image files"),
        ([], "no images to explain"),
    ]
    for paths, message in cases:
        with pytest.raises(InputError, match=message):
            explain(data, tmp_path, *paths)
    for options in ({"methods": ("nothing",)}, {"methods": ()}, {"batch_size": 0}):
        with pytest.raises(InputError):
            explain(data, tmp_path, tmp_path / "photo.png", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written_is_refused(data: FolderDataModule, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match=r"out cannot be written .*--output"):
        explain(data, tmp_path, save(tmp_path / "photo.png"))


def test_files_of_the_same_name_have_overlays_of_their_own(data: FolderDataModule, tmp_path: Path) -> None:
    for name in ("one/x.png", "one/x.jpg", "one/deep/x.png", "one/X.gif", "two/x.png", "other/two/x.png"):
        save(tmp_path / name)
    paths = [tmp_path / name for name in ("one", "two", "other/two", "two/x.png", "one/x.jpg")]
    results = explain(data, tmp_path, *paths)
    assert len(results) == 6, "each file once"
    overlays = [entry["overlay"] for result in results for entry in result["methods"]["agcam"]]
    stems = [overlay.split("-agcam")[0] for overlay in overlays]
    assert stems == ["one/X", "one/deep/x", "one/x-2", "one/x-3", "two/x", "two/x-2"]
    assert all((tmp_path / "out" / overlay).is_file() for overlay in overlays)
    assert len(set(map(str.casefold, overlays))) == 6


def test_names_of_files_are_safe(tmp_path: Path) -> None:
    class Odd(DigitScenesDataModule):
        class_names = property(lambda data: ["../../etc", "a/b", "long " * 90])

    folder = tmp_path / "photos"
    for name in ("[bold]x[/bold].png", "a b?.png", "ä" * 100 + ".png", "...png"):
        save(folder / name, format="png")
    results = explain(Odd(num_workers=0), tmp_path, folder, targets=[0, 1, 2], methods=("reciprocam:kernel=dirac",))
    files = [entry["overlay"] for result in results for entries in result["methods"].values() for entry in entries]
    assert len(set(files)) == 3 * 3, "a name of dots and an ending is hidden"
    assert all((tmp_path / "out" / file).is_file() for file in files)
    assert not any(set(file) & set("?[]: ") for file in files)
    assert "a_b-reciprocam_kernel_dirac-etc.png" in files


def test_accents_of_classes_and_files_are_the_same_in_either_form(tmp_path: Path) -> None:
    class Cafes(DigitScenesDataModule):
        class_names = property(lambda data: ["caf\u00e9", "bar", "pub"])

    paths = [save(tmp_path / f"{name}.png") for name in ("caf\u00e9", "cafe\u0301")]
    results = explain(Cafes(num_workers=0), tmp_path, *paths, targets=["cafe\u0301"])
    assert [result["targets"][0]["index"] for result in results] == [0] * len(results)
    names = {unicodedata.normalize("NFC", result["methods"]["agcam"][0]["overlay"]) for result in results}
    assert len(names) == len(results), "no overlay takes the place of another on a disk that knows one form"


def test_the_results_of_an_earlier_run_are_not_explained(data: FolderDataModule, tmp_path: Path) -> None:
    save(tmp_path / "photos" / "x.png")
    for _ in range(2):
        results = explain_images(make_module(), data, [tmp_path / "photos"], ["agcam"], tmp_path / "photos" / "out")
        assert len(results) == 1
    explain_images(make_module(), data, [tmp_path / "photos" / "x.png"], ["agcam"], tmp_path)
    with pytest.raises(InputError, match=r"photos' is both the output and a folder of the images"):
        explain_images(make_module(), data, [tmp_path / "photos"], ["agcam"], tmp_path / "photos")


MODES = {
    "cmyk.jpg": picture().convert("CMYK"),
    "palette.png": picture().convert("P"),
    "rgba.png": picture().convert("RGBA"),
    "gray.jpg": picture().convert("L"),
    "deep.png": Image.fromarray(np.asarray(picture().convert("L")).astype(np.uint16) * 257),
    "bits.png": picture().convert("1"),
    "photo.gif": picture(),
    "photo.webp": picture(),
    "photo.bmp": picture(),
    "photo.tiff": picture(),
}


@pytest.mark.parametrize("name", list(MODES))
def test_every_kind_of_file_is_explained(data: FolderDataModule, tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, MODES[name])
    [result] = explain(data, tmp_path, path)
    assert result["size"] == [90, 60]
    assert read_png(tmp_path / "out" / result["methods"]["agcam"][0]["overlay"]).shape == (60, 90, 3)


@pytest.mark.parametrize("size", [(1, 1), (2, 150), (4000, 3000), (300, 1700)])
def test_overlays_keep_the_aspect_and_at_most_1600_pixels(
    data: FolderDataModule, tmp_path: Path, size: tuple[int, int]
) -> None:
    [result] = explain(data, tmp_path, save(tmp_path / "photo.jpg", picture(*size)))
    assert result["size"] == list(size)
    factor = min(1, 1600 / max(size))
    drawn = read_png(tmp_path / "out" / result["methods"]["agcam"][0]["overlay"])
    assert drawn.shape == (round(size[1] * factor), round(size[0] * factor), 3)


def test_a_photo_is_turned_upright_before_all_else(data: FolderDataModule, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = save(tmp_path / "upright.png", picture(90, 60))
    lying = save(tmp_path / "lying.png", picture(90, 60).transpose(Image.Transpose.ROTATE_90), exif=exif)
    first, second = explain(data, tmp_path, upright, lying)
    assert first["size"] == second["size"] == [90, 60]
    assert first["top5"] == second["top5"]
    drawn = [read_png(tmp_path / "out" / result["methods"]["agcam"][0]["overlay"]) for result in (first, second)]
    assert np.array_equal(*drawn)


def test_data_that_are_drawn_take_an_image_of_their_own_size_as_it_is(tmp_path: Path) -> None:
    data, module = DigitScenesDataModule(num_val=2, batch_size=2, num_workers=0), make_module(10)
    data.use_data_config(module.data_config)
    batch = next(iter(data.val_dataloader()))
    paths = [save(tmp_path / f"{i}.png", Image.fromarray(batch["image"][i].permute(1, 2, 0).numpy())) for i in range(2)]
    results = explain(data, tmp_path, *paths, module=module)
    probabilities = module(data.normalize(batch)["image"]).softmax(1).max(1)[0].tolist()
    assert [result["predicted"][0]["probability"] for result in results] == pytest.approx(probabilities)


def test_maps_that_say_nothing_are_marked(data: FolderDataModule, tmp_path: Path) -> None:
    [result] = explain(data, tmp_path, save(tmp_path / "photo.png"), methods=("uniform", "center"))
    assert {name: entry["degenerate"] for name, [entry] in result["methods"].items()} == {
        "uniform": True,
        "center": False,
    }


def test_a_model_that_gives_nan_predicts_nothing(data: FolderDataModule, tmp_path: Path) -> None:
    module = make_module()
    torch.nn.init.constant_(module.net.head.weight, float("nan"))
    with pytest.raises(InputError, match=r"logits of 1 of 1 images, the first of them '.*photo\.png', are NaN"):
        explain(data, tmp_path, save(tmp_path / "photo.png"), module=module)
    assert written(tmp_path)["images"] == []


def test_what_is_done_stays_after_ctrl_c(
    data: FolderDataModule, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [save(tmp_path / f"{i}.png") for i in range(3)]
    read = own_images.read_image

    def interrupted(path: Path) -> Pixels:
        if path == paths[2]:
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(own_images, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        explain(data, tmp_path, *paths, batch_size=1)
    assert [image["file"] for image in written(tmp_path)["images"]] == [str(path) for path in paths[:2]]


def test_few_images_are_listed_and_many_counted(
    data: FolderDataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(21):
        save(tmp_path / "photos" / f"{i:02}.png", picture(8, 8))
    explain(data, tmp_path, tmp_path / "photos" / "07.png")
    printed = capsys.readouterr().out
    assert "07.png" in printed.replace("\n", "")
    assert "%" in printed
    assert str(tmp_path / "out" / "predictions.json") in printed
    explain(data, tmp_path, tmp_path / "photos")
    printed = capsys.readouterr().out
    assert "21 images explained." in printed
    assert "07.png" not in printed


def test_nothing_of_the_module_is_changed(data: FolderDataModule, tmp_path: Path) -> None:
    module = make_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    explain(data, tmp_path, save(tmp_path / "photo.png"), module=module, methods=("agcam", "gradcam", "saliency"))
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


def test_folders_are_searched_in_the_order_of_their_paths(tmp_path: Path) -> None:
    for name in ("b.png", "a/z.PNG", "a/b/c.jpeg", "c.txt"):
        save(tmp_path / "photos" / name, format="png")
    (tmp_path / "photos" / "folder.png").mkdir()
    found = find_images([tmp_path / "photos"])
    assert [path.relative_to(tmp_path / "photos").as_posix() for path, _ in found] == ["a/b/c.jpeg", "a/z.PNG", "b.png"]
    assert [name for _, name in found] == ["a/b/c", "a/z", "b"]
