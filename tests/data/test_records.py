"""Records as bytes: they come back as they were, in little memory."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from litcam.data import Record
from litcam.data.records import Records

RECORDS = [
    Record(Path("train/cat/café.jpg"), (0,), "café"),
    Record(
        path=Path("/data/1.png"),
        labels=(1, 4),
        id="1",
        boxes=((0.5, 1, 20, 30), (2, 3, 4, 5)),
        box_labels=(4, 1),
        mask=Path("masks/1.png"),
        mask_values="classes",
        size=(40, 30),
    ),
    Record(Path("caf\udce9.jpg"), (2,), "2", boxes=()),  # a name that is not UTF-8
]


def test_records_come_back_as_they_were() -> None:
    records = Records(RECORDS)
    assert len(records) == 3
    assert list(records) == RECORDS
    assert records[-1] == RECORDS[-1]
    assert records[1:] == RECORDS[1:]
    assert list(pickle.loads(pickle.dumps(records))) == RECORDS  # as a spawned loading process gets them
    for index in (3, -4):
        with pytest.raises(IndexError):
            records[index]


def test_no_records_are_false() -> None:
    assert not Records([])
    assert list(Records([])) == []


def test_boxes_and_masks_are_known_without_looking() -> None:
    first, second, third = RECORDS
    for own, boxes, masks in (([first], False, False), ([first, third], True, False), ([second], True, True)):
        assert (Records(own).has_boxes, Records(own).has_masks) == (boxes, masks)
    assert Records([replace(second, boxes=None, box_labels=())]).has_boxes is False


def test_a_record_takes_little_more_than_its_text() -> None:
    folder = Path("/data/imagenet/train/n01440764")
    records = Records(Record(folder / f"n01440764_{i}.JPEG", (0,), f"n01440764_{i}") for i in range(1000))
    assert len(pickle.dumps(records)) < 150 * 1000
