"""Datasets as LightningDataModules, one dataset, one file; all give the batch contract of :mod:`litcam.data.batch`."""

from litcam.data.batch import (
    Batch,
    Sample,
    box_regions,
    boxes_of,
    class_regions,
    collate,
    mask_regions,
    present_classes,
    read_batch,
    regions_of,
)
from litcam.data.digits import DigitScenes, DigitScenesDataModule, SceneStyle
from litcam.data.module import ImageDataModule

__all__ = [
    "Batch",
    "DigitScenes",
    "DigitScenesDataModule",
    "ImageDataModule",
    "Sample",
    "SceneStyle",
    "box_regions",
    "boxes_of",
    "class_regions",
    "collate",
    "mask_regions",
    "present_classes",
    "read_batch",
    "regions_of",
]
