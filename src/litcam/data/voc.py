"""PASCAL VOC 2012: 20 classes, one per image or several, boxes of every object, class masks for part of the images."""

from pathlib import Path
from typing import Literal

from torchvision.datasets.utils import download_and_extract_archive
from torchvision.datasets.voc import DATASET_YEAR_DICT

from litcam.data.annotations import read_voc
from litcam.data.boxes import with_boxes
from litcam.data.download import downloading
from litcam.data.finding import composed
from litcam.data.image_files import ImageFilesDataModule, OnError
from litcam.data.module import Split
from litcam.data.parsing import read_lines
from litcam.data.reading import BadFileError
from litcam.data.records import Record
from litcam.data.transforms import TransformSpec
from litcam.errors import InputError, check_choice

CLASS_NAMES = [
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
_ARCHIVE = DATASET_YEAR_DICT["2012"]
_PLACES = ("", "VOC2012", "VOCdevkit/VOC2012")  # of the dataset, seen from the root


class VOC2012DataModule(ImageFilesDataModule):
    """PASCAL VOC 2012 as its archive unpacks: ``VOCdevkit/VOC2012`` with JPEGImages, Annotations, ImageSets.

    Labels come from the objects of the XML files. The masks of SegmentationClass are given where they exist, and are
    void all over for other images of the same split; 255 is void there too.

    Args:
        root: folder that holds ``VOCdevkit``, or that folder, or the one in it.
        multi_label: false takes the images that have objects of exactly one class (the AGCAM paper's rule); true takes
            all, with multi-hot labels.
        difficult: whether objects marked as difficult count, as boxes and for the labels.
        split_list: lists of train and val: ``"main"`` of ImageSets/Main, ``"segmentation"`` of
            ImageSets/Segmentation, whose images all have masks.
        download: fetch the archive (2 GB) when the dataset is not there.
        train_transforms: see :class:`~litcam.data.ImageFilesDataModule`, as for all that follow.
        eval_transforms: for validation.
        eval_resize: ``"crop"`` or ``"squash"``.
        on_error: ``"raise"`` or ``"skip"``.
        seed: of augmentations and order.
        batch_size: images per batch and process.
        num_workers: loading processes.

    Raises:
        InputError: for an unknown option, and, once images are asked for, if the dataset is not there.
    """

    splits = ("train", "val")  # the annotations of its test images are not public

    def __init__(
        self,
        root: str = "data",
        multi_label: bool = False,
        difficult: bool = True,
        split_list: Literal["main", "segmentation"] = "main",
        download: bool = False,
        train_transforms: list[TransformSpec] | None = None,
        eval_transforms: list[TransformSpec] | None = None,
        eval_resize: Literal["crop", "squash"] = "crop",
        on_error: OnError = "raise",
        seed: int = 0,
        batch_size: int = 64,
        num_workers: int = 4,
    ) -> None:
        super().__init__(root, train_transforms, eval_transforms, eval_resize, on_error, seed, batch_size, num_workers)
        self.save_hyperparameters()
        check_choice("split_list", split_list, ("main", "segmentation"))
        self.multi_label = multi_label
        self.difficult = difficult
        self.split_list = split_list
        self.download = download

    @property
    def class_names(self) -> list[str]:
        return CLASS_NAMES

    @property
    def folder(self) -> Path:
        """The folder ``VOC2012``.

        Raises:
            InputError: if it is not there.
        """
        for place in _PLACES:
            if (self.root / place / "ImageSets").is_dir():
                return self.root / place
        raise InputError(
            f"There is no PASCAL VOC 2012 in {self.root}: expected VOCdevkit/VOC2012 with JPEGImages, Annotations, "
            f"ImageSets and SegmentationClass, as {_ARCHIVE['filename']} unpacks; give another root, or download: true."
        )

    def prepare_data(self) -> None:
        """Fetch the dataset if that is wanted and it is not there."""
        if not self.download or any((self.root / place / "ImageSets").is_dir() for place in _PLACES):
            return
        url, file, md5 = (_ARCHIVE[key] for key in ("url", "filename", "md5"))
        unpacked = self.root / "VOCdevkit" / "VOC2012"
        with downloading("PASCAL VOC 2012 could not be downloaded", url, self.root, unpacked):
            download_and_extract_archive(url, str(self.root), filename=file, md5=md5)

    def records(self, split: Split) -> list[Record]:
        folder = self.folder
        listed = folder / "ImageSets" / self.split_list.capitalize() / f"{split}.txt"
        if not listed.is_file():
            raise InputError(f"{listed} is missing; unpack {_ARCHIVE['filename']} again.")
        images, xmls, masks = (
            {composed(path.stem): path for path in folder.glob(pattern)}
            for pattern in ("JPEGImages/*.jpg", "Annotations/*.xml", "SegmentationClass/*.png")
        )
        records = []
        for name in (composed(name) for _, line in read_lines(listed) for name in line.split()):
            if name in images:
                xml = xmls.get(name, folder / "Annotations" / f"{name}.xml")
                records.append(self._record(name, images[name], xml, masks.get(name)))
            else:
                self.leave_out(folder / "JPEGImages" / f"{name}.jpg", "the image is listed, but is not there")
        return [record for record in records if record is not None]

    def _record(self, name: str, path: Path, xml: Path, mask: Path | None) -> Record | None:
        """The record of an image; None where it has no class, or several and one is wanted, or is left out."""
        try:
            objects = read_voc(xml, self.difficult)
        except BadFileError as error:
            self.note(error)
            return None
        unknown = set(objects.names) - set(CLASS_NAMES)
        if unknown:
            self.leave_out(xml, f"VOC 2012 has no class {', '.join(name or repr(name) for name in sorted(unknown))}")
            return None
        box_labels = tuple(map(CLASS_NAMES.index, objects.names))
        labels = tuple(sorted(set(box_labels)))  # a bad box says nothing against its label
        if len(labels) != 1 and not self.multi_label:
            return None
        record = Record(
            path=path,
            labels=labels,
            id=name,
            mask=mask,
            mask_values="classes",
            size=objects.size,
        )
        return with_boxes(record, objects.boxes, box_labels, self.note)
