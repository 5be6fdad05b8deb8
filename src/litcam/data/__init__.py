"""Datasets as LightningDataModules, one dataset, one file; all give the batch contract of :mod:`litcam.data.batch`."""

from litcam.data.batch import (
    Batch,
    Sample,
    box_regions,
    boxes_of,
    class_regions,
    collate,
    labelled_pairs,
    mask_regions,
    present_classes,
    read_batch,
    regions_of,
    true_regions,
)
from litcam.data.cub import CUB200DataModule
from litcam.data.cues import Cue
from litcam.data.digits import DigitScenes, DigitScenesDataModule, SceneStyle
from litcam.data.folder import FolderDataModule
from litcam.data.image_files import ImageFiles, ImageFilesDataModule
from litcam.data.imagenet import ImageNetDataModule
from litcam.data.module import ImageDataModule
from litcam.data.records import Record
from litcam.data.voc import VOC2012DataModule

__all__ = [
    "Batch",
    "CUB200DataModule",
    "Cue",
    "DigitScenes",
    "DigitScenesDataModule",
    "FolderDataModule",
    "ImageDataModule",
    "ImageFiles",
    "ImageFilesDataModule",
    "ImageNetDataModule",
    "Record",
    "Sample",
    "SceneStyle",
    "VOC2012DataModule",
    "box_regions",
    "boxes_of",
    "class_regions",
    "collate",
    "labelled_pairs",
    "mask_regions",
    "present_classes",
    "read_batch",
    "regions_of",
    "true_regions",
]
