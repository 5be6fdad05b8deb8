"""Bad annotations through the command lines: named in one sentence, or a run without them."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from picture_cases import save_picture
from test_annotations import voc_file, voc_object

from cli_cases import command
from litcam import cli

SIZE = (48, 48)
BOX = (8, 8, 32, 32)
HEADER = "path,x0,y0,x1,y1,label\n"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, four training and two validation images each, and a config that reads them."""
    root = tmp_path_factory.mktemp("annotation_faults")
    for split, count in (("train", 4), ("val", 2)):
        for name in ("cat", "dog"):
            for index in range(count):
                save_picture(root / "data" / split / name / f"{split}_{name}_{index}.png", SIZE, BOX)
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
    model = {"model": "vit_tiny_patch16_224", "num_classes": 2, "pretrained": False, "model_kwargs": kwargs}
    checkpoint = {"dirpath": str(root / "run"), "filename": "last"}
    config: dict[str, Any] = {
        "model": model,
        "data": {
            "class_path": "litcam.data.FolderDataModule",
            "init_args": {"root": str(root / "data"), "batch_size": 4, "num_workers": 0, "eval_resize": "squash"},
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 1,
            "enable_progress_bar": False,
            "logger": False,
            "default_root_dir": str(root / "run"),
            "callbacks": [
                {"class_path": "litcam.callbacks.LocalizationMonitor"},
                {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": checkpoint},
            ],
        },
    }
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


@pytest.fixture
def run(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train, or whatever else train.py is asked for, on annotations of a format at a place."""
    monkeypatch.setattr(logging, "raiseExceptions", False)  # Lightning's handler keeps the stream of an earlier test

    def train(boxes: str, place: Path, *more: str) -> None:
        cli.train(pictures / "config.yaml", [f"--data.boxes={boxes}", f"--data.boxes_path={place}", *more])

    return train


def coco(pictures: Path, changes: dict[str, list[Any]]) -> str:
    """COCO of every picture; the boxes of some by their name."""
    names = sorted(path.name for path in (pictures / "data").rglob("*.png"))
    images = [{"id": number, "file_name": name, "width": 48, "height": 48} for number, name in enumerate(names)]
    objects: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        for box in changes.get(name.removesuffix(".png"), [[8, 8, 24, 24]]):
            crowd = box == "crowd"
            bbox = [0, 0, 48, 48] if crowd else box
            kind = "dog" in name
            objects.append({"id": len(objects), "image_id": number, "category_id": int(kind), "bbox": bbox})
            objects[-1]["iscrowd"] = int(crowd)
    categories = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    return json.dumps({"images": images, "annotations": objects, "categories": categories})


def test_a_run_goes_on_without_bad_boxes_and_a_picture_without_object_is_background(
    pictures: Path, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in train2017, whose boxes without area would otherwise end the run; evaluate.py counts the background."""
    bad = {
        "train_cat_0": [[8, 8, 24, 24], [1, 1, 0, 5]],
        "train_dog_0": [[1, 1, 5, 0]],
        "val_cat_0": [[8, 8, None, None], [8, 8, 24, 24]],
        "val_dog_0": ["crowd"],
        "val_dog_1": [[50, 0, 5, 5], [float("nan"), 0, 5, 5]],
    }
    (tmp_path / "boxes.json").write_text(coco(pictures, bad))
    with pytest.warns(UserWarning, match="left out") as caught:
        run("coco", tmp_path / "boxes.json", "--data.on_error=skip")
    warned = [str(warning.message) for warning in caught if "on_error: skip" in str(warning.message)]
    assert [sentence.splitlines()[0] for sentence in warned] == [
        "1 file and 2 boxes are left out (on_error: skip):",
        "1 file and 3 boxes are left out (on_error: skip):",
    ]
    arguments = ["--ckpt_path", str(pictures / "run" / "last.ckpt"), "--methods", "agcam", "--metrics", "localization"]
    with pytest.warns(UserWarning, match="1 file and 3 boxes are left out"):
        cli.evaluate([*arguments, "--output", str(tmp_path / "results")])
    results = json.loads((tmp_path / "results" / "results.json").read_text())
    assert results["left_out"]["agcam"]["localization"]["without_region"] == 1
    with pytest.raises(SystemExit) as left:
        run("coco", tmp_path / "boxes.json", "--check_data")
    assert left.value.code == 1
    printed = capsys.readouterr().out
    assert "2 bad files and 5 bad boxes" in printed


def write(place: Path, name: str, content: str | bytes) -> Path:
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return place


XML = '<?xml version="1.0" encoding="{}"?><annotation><object><name>{}</name></object></annotation>'
FAULTS = [
    ("voc", "train_cat_0.xml", XML.format("klingon", "cat"), "declares the encoding 'klingon', which is unknown"),
    ("voc", "train_cat_0.xml", XML.format("rot13", "cat"), "declares the encoding 'rot13', which is unknown"),
    ("voc", "train_cat_0.xml", "<annotation>", "the file is not valid XML"),
    ("voc", "train_cat_0.xml", XML.format("UTF-8", "cat"), "object 1, cat: the box has to be 4 numbers"),
    ("yolo", "train_cat_0.txt", "0 .5 .5 .0 .5", "line 1: the box (0.5, 0.5, 0, 0.5) has no area"),
    ("yolo", "train_cat_0.txt", b"0 .5 \xff", "the file is not UTF-8 text"),
    ("csv", "a.csv", HEADER + "a" * 200_000 + ",0,0,1,1,cat", "the file is not valid CSV (field larger"),
    ("csv", "a.csv", HEADER + "train_cat_0.png,0,0,1,nan,cat", "line 2, of train_cat_0.png: the box has to be 4"),
    ("coco", "a.json", "[" + "9" * 5000 + "]", "the file is not valid JSON (Exceeds the limit"),
    ("coco", "a.json", '{"images": 3}', "the file is not a COCO annotation: it has no list of images"),
]


@pytest.mark.parametrize(("boxes", "name", "content", "named"), FAULTS)
def test_a_bad_annotation_ends_a_run_in_one_sentence(
    run: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    boxes: str,
    name: str,
    content: str | bytes,
    named: str,
) -> None:
    place = write(tmp_path / "boxes", name, content)
    if boxes == "yolo":
        write(place, "classes.txt", "cat\ndog\n")
    with pytest.raises(SystemExit) as left:
        run(boxes, place)
    assert left.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert sentence.startswith(f"error: {place / name}: ")
    assert named in sentence


def test_a_file_that_no_parser_reads_ends_the_command(pictures: Path, tmp_path: Path) -> None:
    """Though bad files are skipped: no image has an annotation then."""
    deep = write(tmp_path / "deep", "a.json", "[" * 200_000)
    config = ["--config", str(pictures / "config.yaml")]
    skip = "--data.on_error=skip"
    failed = command("train.py", *config, "--data.boxes=coco", f"--data.boxes_path={deep}", skip)
    assert failed.returncode == 2
    sentence = f"error: {deep / 'a.json'}: the file is not valid JSON (it is nested too deeply)"
    assert failed.stderr.splitlines()[-1] == sentence
    assert "Traceback" not in failed.stderr


def test_checking_the_data_names_bad_boxes_of_files_in_gbk(pictures: Path, tmp_path: Path) -> None:
    for path in (pictures / "data").rglob("*.png"):
        objects = [voc_object(path.parent.name, (9, 9, 32, 32))]
        if path.stem == "val_cat_0":
            objects.append(voc_object("cat", (9, 9, 7, 32)))
        file = voc_file(tmp_path / "xml" / f"{path.stem}.xml", *objects, size=SIZE)
        text = file.read_text().replace("<annotation>", "<annotation><folder>图片</folder>")
        file.write_bytes(f'<?xml version="1.0" encoding="GBK"?>{text}'.encode("gbk"))
    config = ["--config", str(pictures / "config.yaml"), "--data.boxes=voc", f"--data.boxes_path={tmp_path / 'xml'}"]
    checked = command("train.py", *config, "--check_data")
    assert checked.returncode == 1
    assert f"{tmp_path / 'xml' / 'val_cat_0.xml'}: object 2, cat: the box (9, 9, 7, 32) has no area" in checked.stdout
    assert checked.stdout.splitlines()[-1] == "1 bad box"
