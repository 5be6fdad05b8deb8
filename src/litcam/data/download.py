"""What is said when an archive cannot be fetched. Knows no dataset."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from litcam.errors import InputError


@contextmanager
def downloading(trouble: str, source: str, target: Path, unpacked: Path) -> Iterator[None]:
    """Around a download: turn its failure into one sentence that says how to get the files otherwise.

    Args:
        trouble: the sentence's beginning.
        source: what is to be fetched, and from where.
        target: the folder to unpack it in.
        unpacked: the folder that is there then.

    Raises:
        InputError: if there is no network or no room, or a checksum differs.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"{trouble} ({error}); fetch {source} by other means and unpack it in {target}, "
            f"so that {unpacked} is there."
        ) from error
