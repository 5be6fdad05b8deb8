"""ImageNet: both layouts give the same records, boxes by hand, and every way in which a tree can be wrong."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from folder_cases import clutter, link, make_pipe
from PIL import Image

from litcam.data import ImageNetDataModule
from litcam.data.imagenet import imagenet_class_names, imagenet_records
from litcam.errors import InputError

TENCH, CRANE_BIRD, CRANE = "n01440764", "n02012849", "n03126707"
MAPPING = f"{CRANE} crane\n{TENCH} tench, Tinca tinca\n{CRANE_BIRD} crane\n"
SOLUTION = f"ImageId,PredictionString\nval_2,{CRANE} 4 2 11 9 {CRANE} 0 0 39 23 \nval_1,{TENCH} 8 4 23 15 \n"
XML = """<annotation><size><width>40</width><height>24</height><depth>3</depth></size>
<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>
</annotation>"""
CONFIG = {"input_size": (3, 24, 40), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic"}
ROOT = Path(__file__).parent.parent.parent


def make_images(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (40, 24)).save(folder / name, format="JPEG")


def make_folders(root: Path) -> Path:
    """train and val by synset; the one image of crane is in val, and one of tench in both."""
    make_images(root / "train" / TENCH, f"{TENCH}_7.JPEG", f"{TENCH}_10.JPEG")
    make_images(root / "train" / CRANE_BIRD, f"{CRANE_BIRD}_1.JPEG")
    make_images(root / "train" / CRANE, f"{CRANE}_1.JPEG")
    make_images(root / "val" / TENCH, "val_1.JPEG")
    make_images(root / "val" / CRANE, "val_2.JPEG")
    return root


def make_kaggle(root: Path, solution: str | None = SOLUTION, mapping: str | None = MAPPING) -> Path:
    """Kaggle's archive: lists beside ILSVRC, val images without folders."""
    images = root / "ILSVRC" / "Data" / "CLS-LOC"
    make_folders(images)
    for image in sorted((images / "val").glob("*/*")):
        image.rename(images / "val" / image.name)
        image.parent.rmdir()
    if solution is not None:
        (root / "LOC_val_solution.csv").write_text(solution)
    if mapping is not None:
        (root / "LOC_synset_mapping.txt").write_text(mapping)
    return root


def make_xml(root: Path, name: str, *values: object) -> Path:
    path = root / "Annotations" / "CLS-LOC" / "val" / f"{name}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(XML.format(*values))
    return path


def make_module(root: Path, **arguments: Any) -> ImageNetDataModule:
    module = ImageNetDataModule(str(root), batch_size=4, num_workers=0, eval_resize="squash", **arguments)
    module.use_data_config(CONFIG)
    return module


def val_ids(module: ImageNetDataModule) -> list[str]:
    return [name for batch in module.val_dataloader() for name in batch["id"]]


def test_folders_by_synset_are_the_classes_in_their_order(tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "train" / TENCH / "notes.txt").touch()
    (tmp_path / "train" / ".cache").mkdir()
    train = [(record.id, record.labels) for record in imagenet_records(tmp_path, "train")]
    assert train == [(f"{TENCH}_10", (0,)), (f"{TENCH}_7", (0,)), (f"{CRANE_BIRD}_1", (1,)), (f"{CRANE}_1", (2,))]
    val = imagenet_records(tmp_path, "val")
    assert [(record.id, record.labels, record.boxes) for record in val] == [
        ("val_1", (0,), None),
        ("val_2", (2,), None),
    ]
    assert val[0].path == tmp_path / "val" / TENCH / "val_1.JPEG"
    assert imagenet_class_names(tmp_path) == ["tench", f"crane ({CRANE_BIRD})", f"crane ({CRANE})"]


@pytest.mark.parametrize("inside", [True, False])
def test_kaggles_archive_is_read_as_it_unpacks(tmp_path: Path, inside: bool) -> None:
    make_kaggle(tmp_path)
    root = tmp_path / "ILSVRC" if inside else tmp_path
    crane, tench = imagenet_records(root, "val")  # in the order of the list
    assert (crane.id, crane.labels, crane.box_labels) == ("val_2", (2,), (2, 2))
    assert crane.boxes == ((4, 2, 12, 10), (0, 0, 40, 24))
    assert (tench.id, tench.labels, tench.boxes) == ("val_1", (0,), ((8, 4, 24, 16),))
    assert tench.path == tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val" / "val_1.JPEG"
    train = imagenet_records(root, "train")
    assert [record.labels for record in train] == [(0,), (0,), (1,), (2,)]
    assert all(record.boxes is None for record in train)
    assert imagenet_class_names(root) == ["tench", f"crane ({CRANE_BIRD})", f"crane ({CRANE})"]


def test_the_lists_may_lie_in_kaggles_folder_too(tmp_path: Path) -> None:
    make_kaggle(tmp_path)
    for name in ("LOC_val_solution.csv", "LOC_synset_mapping.txt"):
        (tmp_path / name).rename(tmp_path / "ILSVRC" / name)
    assert [record.id for record in imagenet_records(tmp_path, "val")] == ["val_2", "val_1"]


def test_xml_files_say_the_same_as_kaggles_list(tmp_path: Path) -> None:
    make_kaggle(tmp_path, solution=None)
    make_xml(tmp_path / "ILSVRC", "val_1", TENCH, 8, 4, 23, 15)
    make_xml(tmp_path / "ILSVRC", "val_2", CRANE, 0, 0, 39, 23)
    tench, crane = imagenet_records(tmp_path, "val")
    assert (tench.labels, tench.boxes, tench.size) == ((0,), ((8, 4, 24, 16),), (40, 24))
    assert (crane.labels, crane.boxes, crane.box_labels) == ((2,), ((0, 0, 40, 24),), (2,))


def test_validation_images_by_synset_take_their_boxes_from_either(tmp_path: Path) -> None:
    make_folders(tmp_path)
    make_xml(tmp_path, "val_1", TENCH, 8, 4, 23, 15)
    assert [record.boxes for record in imagenet_records(tmp_path, "val")] == [((8, 4, 24, 16),), None]
    (tmp_path / "LOC_val_solution.csv").write_text(SOLUTION + f"elsewhere,{TENCH} 1 1 2 2\n")
    assert [len(record.boxes or ()) for record in imagenet_records(tmp_path, "val")] == [1, 2]


def test_only_objects_of_the_images_class_have_boxes(tmp_path: Path) -> None:
    make_kaggle(tmp_path, SOLUTION.replace(f"{CRANE} 0 0", f"{TENCH} 0 0"))
    crane, _ = imagenet_records(tmp_path, "val")
    assert (crane.labels, crane.boxes, crane.box_labels) == ((2,), ((4, 2, 12, 10),), (2,))


def test_without_a_mapping_kaggles_classes_are_all_thousand(tmp_path: Path) -> None:
    make_kaggle(tmp_path, mapping=None)
    names = imagenet_class_names(tmp_path)
    assert len(names) == len(set(names)) == 1000
    assert [names[record.labels[0]] for record in imagenet_records(tmp_path, "val")] == [f"crane ({CRANE})", "tench"]


def test_folders_of_other_names_keep_them(tmp_path: Path) -> None:
    make_images(tmp_path / "val" / "cat", "1.jpg")
    assert imagenet_class_names(tmp_path) == ["cat"]


def test_the_module_gives_batches_with_boxes(tmp_path: Path) -> None:
    module = make_module(make_kaggle(tmp_path))
    batch = next(iter(module.val_dataloader()))
    assert batch["label"].tolist() == [2, 0]
    assert batch["boxes"].tolist() == [[0, 4, 2, 12, 10], [0, 0, 0, 40, 24], [1, 8, 4, 24, 16]]
    assert batch["instance_labels"].tolist() == [2, 2, 0]
    train = next(iter(module.train_dataloader()))
    assert sorted(train["label"].tolist()) == [0, 0, 1, 2]
    assert "boxes" not in train
    with pytest.raises(InputError, match="ImageNetDataModule has no test split; it has train, val"):
        module.test_dataloader()


def test_training_images_are_missed_only_when_they_are_asked_for(tmp_path: Path) -> None:
    module = make_module(make_kaggle(tmp_path))
    shutil.rmtree(tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "train")
    assert val_ids(module) == ["val_2", "val_1"]
    assert module.records("train") == []
    with pytest.raises(InputError, match="train is missing, the images for train: expected is either train/<synset>"):
        module.train_dataloader()


def test_a_missing_dataset_is_told_what_is_expected(tmp_path: Path) -> None:
    for look in (lambda: imagenet_records(tmp_path, "val"), lambda: make_module(tmp_path).class_names):
        with pytest.raises(InputError, match=r"There is no ImageNet in .*ILSVRC/Data/CLS-LOC.*no download"):
            look()
    make_folders(tmp_path)
    with pytest.raises(InputError, match="split is 'test'; choose one of train, val"):
        imagenet_records(tmp_path, "test")


def test_validation_images_without_labels_are_refused(tmp_path: Path) -> None:
    make_kaggle(tmp_path, solution=None)
    with pytest.raises(InputError, match=r"The images in .*val have no labels: expected"):
        imagenet_records(tmp_path, "val")


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        ("image,boxes\n", "the columns ImageId, PredictionString are missing"),
        (
            f"ImageId,PredictionString\nval_1,{TENCH} 8 4 23\n",
            f"of val_1: '{TENCH} 8 4 23' has to be 'synset x0 y0 x1",
        ),
        (
            f"ImageId,PredictionString\nval_1,{TENCH} 8 4 23 x\n",
            r"object 1 of val_1: the box has .*, not \['8', '4', '23', 'x'\]",
        ),
        ("ImageId,PredictionString\nval_1,\n", "line 2, of val_1: '' has to be"),
        ("ImageId,PredictionString\nval_1\n", "line 2, of val_1: '' has to be"),
        (SOLUTION + SOLUTION.splitlines()[-1], "line 4, of val_1: val_1 stands there for the second time"),
    ],
)
def test_a_line_of_the_list_that_cannot_be_read_is_named(tmp_path: Path, solution: str, message: str) -> None:
    make_kaggle(tmp_path, solution)
    with pytest.raises(InputError, match=f"LOC_val_solution.csv.* {message}"):
        imagenet_records(tmp_path, "val")


@pytest.mark.parametrize("mapping", [f"{TENCH} tench\n{CRANE}\n", f"{TENCH} tench\n{TENCH} fish\n"])
def test_a_line_of_the_mapping_that_cannot_be_read_is_named(tmp_path: Path, mapping: str) -> None:
    make_kaggle(tmp_path, mapping=mapping)
    with pytest.raises(InputError, match=r"LOC_synset_mapping.txt: line 2: .* has to be a synset, new in the file"):
        imagenet_class_names(tmp_path)


def test_lists_that_are_not_text_are_named(tmp_path: Path) -> None:
    (make_kaggle(tmp_path) / "LOC_synset_mapping.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"LOC_synset_mapping.txt: the file is not UTF-8 text"):
        imagenet_class_names(tmp_path)


@pytest.mark.parametrize(
    ("solution", "message"),
    [
        (SOLUTION.replace("val_1", "val_3"), "val_3.JPEG: the image is annotated, but is not there"),
        (
            SOLUTION.replace(f"\nval_1,{TENCH} 8 4 23 15", ""),
            "val_1.JPEG: the image has no annotation, and so no label",
        ),
        (SOLUTION.replace(TENCH, "n00000001"), "val_1.JPEG: its annotation names none of the 3 classes; they are the"),
        (
            SOLUTION.replace("8 4 23", "8 4 7"),
            r"line 3, object 1 of val_1: the box \(8, 4, 7, 15\) has no area",
        ),
        (SOLUTION.replace("8 4 23", "40 4 50"), r"val_1.JPEG: nothing of the box \(40, 4, 51, 16\) lies in the image"),
    ],
)
def test_an_image_that_is_not_usable_is_named_or_left_out(tmp_path: Path, solution: str, message: str) -> None:
    make_kaggle(tmp_path, solution)
    with pytest.raises(InputError, match=message):
        val_ids(make_module(tmp_path))
    with pytest.warns(UserWarning, match=message):
        assert val_ids(make_module(tmp_path, on_error="skip")) == ["val_2"]


@pytest.mark.parametrize("by_synset", [True, False])
def test_an_xml_file_that_is_not_usable_takes_its_image_along(tmp_path: Path, by_synset: bool) -> None:
    root = make_folders(tmp_path) if by_synset else make_kaggle(tmp_path, solution=None) / "ILSVRC"
    make_xml(root, "val_1", TENCH, 8, 4, 7, 15)
    make_xml(root, "val_2", CRANE, 0, 0, 39, 23)
    message = r"val_1.xml: object 1, n01440764: the box \(8, 4, 7, 15\) has no area"
    with pytest.raises(InputError, match=message):
        imagenet_records(tmp_path, "val")
    with pytest.warns(UserWarning, match=message):
        assert val_ids(make_module(tmp_path, on_error="skip")) == ["val_2"]


@pytest.mark.parametrize(
    ("split", "name", "message"),
    [("val", "n00000001", "the folder is none of the 3 classes"), ("train", "n00000001", "the folder holds no image")],
)
def test_a_folder_that_is_not_usable_is_named(tmp_path: Path, split: Any, name: str, message: str) -> None:
    (make_folders(tmp_path) / split / name).mkdir()
    with pytest.raises(InputError, match=f"{name}: {message}"):
        imagenet_records(tmp_path, split)


@pytest.mark.parametrize(("name", "missing"), [("imagenet", "ImageNet"), ("cub200", "CUB-200-2011")])
def test_the_config_is_accepted_up_to_the_missing_data(
    tmp_path: Path, name: str, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from litcam import cli

    path = ROOT / "configs" / f"{name}.yaml"
    assert f"python train.py --config configs/{name}.yaml" in path.read_text().splitlines()[1]
    arguments = [
        "--model.pretrained=false",
        '--model.model_kwargs={"depth": 1, "embed_dim": 24, "num_heads": 2}',
        "--trainer.accelerator=cpu",
        f"--trainer.logger.init_args.save_dir={tmp_path}/runs",
        f"--data.root={tmp_path}",
    ]
    with pytest.raises(SystemExit) as stop:
        cli.train(path, arguments)
    assert stop.value.code == 2
    assert f"error: There is no {missing} in {tmp_path}: expected" in capsys.readouterr().err
    config = yaml.safe_load(path.read_text())
    monitored = [entry["init_args"].get("monitor") for entry in config["trainer"]["callbacks"]]
    assert {"val/accuracy", "val/agcam/iou"} <= set(monitored)


def test_clutter_is_neither_class_nor_image_nor_annotation(tmp_path: Path) -> None:
    plain, cluttered = make_folders(tmp_path / "plain"), make_folders(tmp_path / "cluttered")
    make_xml(plain, "val_1", TENCH, 8, 4, 23, 15)
    make_xml(cluttered, "._val_1", "no", "box", 1, 1, 1)
    make_xml(cluttered, "val_1", TENCH, 8, 4, 23, 15)
    for folder in [path for path in cluttered.rglob("*") if path.is_dir()]:
        clutter(folder)
    for split in ("train", "val"):
        found = [list(imagenet_records(root, split)) for root in (plain, cluttered)]  # type: ignore[arg-type]
        assert [(record.id, record.boxes) for record in found[0]] == [(record.id, record.boxes) for record in found[1]]
    assert imagenet_class_names(cluttered) == imagenet_class_names(plain)


def test_linked_folders_are_followed_and_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    store, root = make_folders(tmp_path / "store"), tmp_path / "root"
    for name in (TENCH, CRANE, CRANE_BIRD):
        link(root / "train" / name, store / "train" / name)
    expected = [record.id for record in imagenet_records(store, "train")]
    assert [record.id for record in imagenet_records(root, "train")] == expected
    make_pipe(store / "train" / TENCH / "pipe.JPEG")
    link(store / "train" / CRANE / "loop.JPEG", "loop.JPEG")
    with pytest.raises(
        InputError, match=r"pipe.JPEG: the file cannot be opened \(it is a named pipe, no regular file\)"
    ):
        imagenet_records(root, "train")
    troubles: list[Exception] = []
    assert [record.id for record in imagenet_records(root, "train", troubles.append)] == expected
    assert len(troubles) == 2


@pytest.mark.parametrize("name", ["LOC_val_solution.csv", "LOC_synset_mapping.txt"])
def test_a_pipe_in_the_place_of_a_list_is_not_waited_for(tmp_path: Path, name: str) -> None:
    make_kaggle(tmp_path)
    (tmp_path / name).unlink()
    make_pipe(tmp_path / name)
    if name == "LOC_val_solution.csv":  # as if it were not there
        with pytest.raises(InputError, match="have no labels"):
            imagenet_records(tmp_path, "val")
    else:
        assert len(imagenet_class_names(tmp_path)) == 1000
