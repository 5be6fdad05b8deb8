"""Reading a dataset of files once before a training, and telling what it holds. Behind ``train.py --check_data``."""

from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from litcam.data.boxes import counted
from litcam.data.image_files import ImageFilesDataModule
from litcam.data.module import ImageDataModule, Split
from litcam.data.reading import printable
from litcam.data.records import Record
from litcam.errors import InputError
from litcam.progress import print_line, track

_MOST_CLASSES = 40  # that are listed one by one


def check_data(datamodule: ImageDataModule) -> bool:
    """Read every image, annotation and mask once; print the images of each class and split, every bad file and box.

    Args:
        datamodule: of image files.

    Returns:
        Whether every file and every box is usable.

    Raises:
        InputError: if the data are not read from files, or are not there.
    """
    if not isinstance(datamodule, ImageFilesDataModule):
        raise InputError(f"check_data reads image files, but {type(datamodule).__name__} has none: nothing to check.")
    datamodule.on_error = "skip"  # so that it goes on to the end and knows all
    datamodule.prepare_data()
    usable: dict[Split, list[Record]] = {}
    for split in datamodule.splits:
        records = datamodule.records(split)
        checked = track(datamodule.check_records(records), split, len(records))
        usable[split] = []
        for record, troubles in checked:
            for trouble in troubles:
                datamodule.note(trouble)
            if record is not None:
                usable[split].append(record)
    console = Console()
    console.print(_table(datamodule, usable))
    for sentence in datamodule.left_out:
        print_line(console, sentence, style="red")
    console.print(counted(datamodule.left_out.values(), "bad ") or "Every file is usable.")
    return not datamodule.left_out


def _table(datamodule: ImageFilesDataModule, usable: dict[Split, list[Record]]) -> Table:
    """Images of every class (or the smallest and the largest class), images with boxes and with masks, per split."""
    table = Table(title=Text(printable(datamodule.root)), title_justify="left")
    table.add_column("images")
    for split in usable:
        table.add_column(split, justify="right")
    names = datamodule.class_names
    counts = {
        split: Counter(label for record in records for label in record.labels) for split, records in usable.items()
    }
    if len(names) <= _MOST_CLASSES:
        for index, name in enumerate(names):
            table.add_row(Text(printable(name)), *(str(count[index]) for count in counts.values()))
    else:
        for words, pick in (("fewest of a class", min), ("most of a class", max)):
            cells = (str(pick(count[index] for index in range(len(names)))) for count in counts.values())
            table.add_row(f"{words}, of {len(names)}", *cells)
    table.add_section()
    table.add_row("all", *(str(len(records)) for records in usable.values()))
    table.add_row("with boxes", *(str(sum(bool(record.boxes) for record in records)) for records in usable.values()))
    table.add_row(
        "with a mask", *(str(sum(record.mask is not None for record in records)) for records in usable.values())
    )
    return table
