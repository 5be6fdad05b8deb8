"""CUB-200-2011, the Caltech-UCSD Birds: 200 species, the official split, a box each, masks where they are unpacked."""

import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from torchvision.datasets.utils import download_and_extract_archive

from litcam.data.boxes import BoxFormat, corners_of_sides, with_boxes
from litcam.data.download import downloading
from litcam.data.image_files import ImageFilesDataModule, OnError
from litcam.data.module import Split
from litcam.data.parsing import read_lines
from litcam.data.reading import BadFileError, LeaveOut, bad_file, refuse
from litcam.data.records import Record
from litcam.data.transforms import TransformSpec
from litcam.errors import InputError, check_choice

T = TypeVar("T")

FOLDER = "CUB_200_2011"
PAGES = "https://data.caltech.edu/records"  # of CaltechDATA, the home of the archives
ARCHIVES = {  # what each unpacks to, its record, file and md5
    FOLDER: ("65de6-vp158", "CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78"),
    "segmentations": ("w9d68-gec53", "segmentations.tgz", "4d47ba1228eae64f2fa547c47bc65255"),
}


def cub_records(root: str | Path, split: Split, leave_out: LeaveOut = refuse) -> list[Record]:
    """The images of a split of CUB-200-2011 in the order of ``images.txt``, each with its box and, if there, its mask.

    The masks are grey, each level a fifth of five annotators; what most of them drew is the bird.

    Args:
        root: the folder ``CUB_200_2011`` as its archive unpacks, or the one that holds it; ``segmentations`` lies in
            it or beside it.
        split: ``"train"``, or ``"val"`` and ``"test"``, which both are the official test split.
        leave_out: takes the error of each image that is missing, stands in one list and not in another, has a line that
            cannot be read, a box that is not usable, or no mask although others have; by default it raises them.

    Raises:
        InputError: if a list is missing or cannot be read.
    """
    check_choice("split", split, ("train", "val", "test"))
    folder = _find_folder(Path(root))
    images = _read_list(folder / "images.txt", "<image id> <path in images>", _name)
    in_training = _read_list(folder / "train_test_split.txt", "<image id> <1 for training, else 0>", _flag)
    labels = _read_list(folder / "image_class_labels.txt", "<image id> <class id>", _number)
    boxes = _read_list(folder / "bounding_boxes.txt", "<image id> <x> <y> <width> <height>", _words)
    indices = {number: index for index, number in enumerate(sorted(_species(folder)))}
    segmentations = _segmentations(folder)
    records = []
    for image in images.values:
        try:
            if in_training.of(image) != (split == "train"):
                continue
            number = labels.of(image)
            if number not in indices:
                raise bad_file(labels.path, f"image {image} has the class {number}, which is not in classes.txt")
            label = indices[number]
            name = images.of(image)
            box = _BOX.read(boxes.path, f"image {image}, {name}", boxes.of(image))
            path = _existing(folder / "images", name)
            mask = segmentations and _existing(segmentations, str(Path(name).with_suffix(".png")))
        except BadFileError as error:
            leave_out(error)
            continue
        record = Record(path, (label,), path.stem, mask=mask, mask_values="object")
        usable = with_boxes(record, [box], [label], leave_out)
        if usable is not None:
            records.append(usable)
    return records


def cub_class_names(root: str | Path) -> list[str]:
    """The species by class index, as people write them: ``Black footed Albatross``.

    Indices follow the rising numbers of ``classes.txt``, which may be some of the 200.

    Raises:
        InputError: if ``classes.txt`` is missing or cannot be read.
    """
    return [name for _, name in sorted(_species(_find_folder(Path(root))).items())]


def _species(folder: Path) -> dict[int, str]:
    """The names of ``classes.txt`` by its numbers."""
    names = _read_list(folder / "classes.txt", "<class id> <name>", _name)
    return {number: names.of(number).split(".", 1)[-1].replace("_", " ") for number in names.values}


def download_cub(root: str | Path) -> None:
    """Fetch and unpack images and segmentations (1.2 GB), as far as they are not there already.

    Args:
        root: as for :func:`cub_records`.

    Raises:
        InputError: without network, or if an archive is damaged.
    """
    folder = _place(Path(root))
    there = {FOLDER: folder is not None, "segmentations": folder is not None and _segmentations(folder) is not None}
    target = Path(root) if folder is None else folder.absolute().parent
    for name, (record, file, md5) in ARCHIVES.items():
        if there[name]:
            continue
        with downloading(f"{file} cannot be downloaded", f"it from {PAGES}/{record}", target, target / name):
            download_and_extract_archive(f"{PAGES}/{record}/files/{file}", str(target), md5=md5)


def _find_folder(root: Path) -> Path:
    folder = _place(root)
    if folder is None:
        raise InputError(
            f"There is no CUB-200-2011 in {root}: expected CUB_200_2011/images.txt, image_class_labels.txt, "
            "train_test_split.txt, bounding_boxes.txt, classes.txt and images/, as CUB_200_2011.tgz unpacks, and for "
            "masks segmentations/ in that folder or beside it; give another root, or download: true."
        )
    return folder


def _place(root: Path) -> Path | None:
    """The folder of the lists, also where one of them is missing."""
    if (root / FOLDER).is_dir():
        return root / FOLDER
    return root if any((root / name).is_file() for name in ("images.txt", "image_class_labels.txt")) else None


def _segmentations(folder: Path) -> Path | None:
    """The folder of the masks, inside that of the lists or beside it."""
    places = (folder / "segmentations", folder.absolute().parent / "segmentations")
    return next((place for place in places if place.is_dir()), None)


@dataclass(frozen=True)
class _List(Generic[T]):
    """A list of the archive: what it says of each number, or what is wrong with the number's line."""

    path: Path
    values: dict[int, T | BadFileError]

    def of(self, number: int) -> T:
        if number not in self.values:
            raise bad_file(self.path, f"there is no line for image {number} of images.txt")
        value = self.values[number]
        if isinstance(value, BadFileError):
            raise value
        return value


def _read_list(path: Path, form: str, parse: Callable[..., T]) -> _List[T]:
    """The lines of a list: what ``parse`` makes of the words after the number that begins them, by that number."""
    if not path.exists():
        raise bad_file(path, f"the file is missing; unpack {ARCHIVES[FOLDER][1]} again")
    values: dict[int, T | BadFileError] = {}
    for line, text in read_lines(path):
        first, *words = text.split()
        wrong = bad_file(path, f"line {line}: {text!r} has to be {form!r}")
        try:
            number = _number(first)
        except ValueError:
            raise wrong from None
        try:
            value: T | BadFileError = parse(*words)
        except (KeyError, TypeError, ValueError):
            value = wrong
        again = number in values
        values[number] = bad_file(path, f"line {line}: {number} stands there for the second time") if again else value
    return _List(path, values)


def _name(word: str) -> str:
    return word


def _number(word: str) -> int:
    if not (word.isascii() and word.isdecimal()):
        raise ValueError("no number")
    return int(word)


def _flag(word: str) -> bool:
    return {"0": False, "1": True}[word]


def _words(*words: str) -> list[str]:
    return list(words)


_BOX = BoxFormat(corners_of_sides)  # x + width is the first column beyond: the ends are exclusive as they are


def _existing(folder: Path, name: str) -> Path:
    """The file of a name, in whichever form the disk has its accents."""
    for form in (name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)):
        if (folder / form).is_file():
            return folder / form
    raise bad_file(folder / name, "images.txt lists it, but it is not there; unpack its archive again")


class CUB200DataModule(ImageFilesDataModule):
    """CUB-200-2011: 5,994 training images, and the 5,794 of the official test split for both val and test.

    There is no official validation split: a checkpoint chosen by its validation score has been chosen on the test
    images. Batches have a mask where the folder ``segmentations`` is there.

    Args:
        root: the folder ``CUB_200_2011``, or the one that holds it.
        download: fetch images and segmentations (1.2 GB) into ``root`` if they are not there.
        train_transforms: albumentations; see :class:`~litcam.data.ImageFilesDataModule` for this and the following.
        eval_transforms: the same for validation and test.
        eval_resize: ``"crop"`` or ``"squash"``.
        on_error: ``"raise"`` or ``"skip"``.
        seed: of augmentations and order.
        batch_size: images per batch and process.
        num_workers: loading processes; 0 loads in the training process.

    Raises:
        InputError: for an unknown option or transform, and when the data are read, if they are not as expected.
    """

    def __init__(
        self,
        root: str = "data",
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
        self.download = download

    def prepare_data(self) -> None:
        """Fetch the archives if that is wanted and they are not there."""
        if self.download:
            download_cub(self.root)

    @property
    def class_names(self) -> list[str]:
        return cub_class_names(self.root)

    def records(self, split: Split) -> list[Record]:
        """Every image of a split; see :func:`cub_records`."""
        return cub_records(self.root, split, self.note)
