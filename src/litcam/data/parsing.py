"""Annotation files as text, lines, rows, JSON and XML: whatever a parser fails at, the error names the file.

Knows no format of boxes.
"""

import codecs
import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from reprlib import repr as shortened
from typing import Any
from xml.etree import ElementTree

from litcam.data.finding import regular, trouble_with
from litcam.data.reading import BadFileError, bad_file

_FAILURES = (ValueError, SyntaxError, LookupError, RecursionError, csv.Error)  # as the parsers of Python fail
_DECLARED = re.compile(r"""<\?xml\s[^>]*?\sencoding\s*=\s*["']([^"'>]*)["']""")
_FAMILIES = ("latin-1", "cp037")  # ASCII's and EBCDIC's: in one of the two every declaration can be read
_DECLARATION = 400  # bytes that hold one
_NO_CHARACTERS = {"idna", "punycode", "unicode_escape", "raw_unicode_escape"}  # codecs of names and of program text


def read_text(path: Path) -> str:
    """The text of a file: UTF-8, or what its byte order mark says.

    Raises:
        BadFileError: if the file is missing, or no such text.
    """
    data = _read_bytes(path)
    try:
        text = data.decode(json.detect_encoding(data))
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise bad_file(path, "the file is not UTF-8 text")
    return text


def read_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, each with its number and without blanks at its ends.

    Raises:
        BadFileError: as for :func:`read_text`.
    """
    lines = enumerate(io.StringIO(read_text(path), newline=None), start=1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str], bool]]:
    """Each row of a CSV file: its line, its values in some columns, and whether it has a value for every column.

    Args:
        path: of the file, whose first row names the columns, in any order; blank rows are none.
        columns: which are wanted.

    Raises:
        BadFileError: if the file is missing or no CSV, or one of the columns is.
    """
    with _parsing(path, "CSV"):
        rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True, skipinitialspace=True)
        header = [name.strip() for name in next(filter(any, rows), [])]
        missing = [column for column in columns if header.count(column) != 1]
        if missing:
            trouble = f"the columns {', '.join(missing)} are missing, or stand there twice; needed are"
            raise bad_file(path, f"{trouble} {', '.join(columns)}, with commas between them")
        places = [header.index(column) for column in columns]
        for row in rows:
            if any(value.strip() for value in row):
                values = [*(value.strip() for value in row), *[""] * len(header)]
                yield rows.line_num, [values[place] for place in places], len(row) == len(header)


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        BadFileError: if the file is missing, no JSON, nested too deeply, or a key stands twice in one object.
    """
    data = _read_bytes(path)
    with _parsing(path, "JSON"):
        return json.loads(data.decode(json.detect_encoding(data)), object_pairs_hook=_object)


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file, in whatever encoding it declares.

    Raises:
        BadFileError: if the file is missing, no XML, not in the encoding that it declares, or declares entities.
    """
    data = _read_bytes(path)
    with _parsing(path, "XML"):
        text = _xml_text(path, data)
        if "<!ENTITY" in text:  # of a few bytes they make gigabytes
            raise bad_file(path, "the file declares XML entities, which no annotation needs; they are not read")
        return ElementTree.fromstring(text)


def _xml_text(path: Path, data: bytes) -> str:
    """The text of an XML file, which the parser itself can read in few encodings."""
    encoding = json.detect_encoding(data)  # by a byte order mark, or the zeros of UTF-16 and UTF-32
    heads = [data[:_DECLARATION].decode(family) for family in _FAMILIES]
    declared = next(filter(None, map(_DECLARED.match, heads)), None)
    if encoding != "utf-8" or declared is None:
        return data.decode(encoding)
    try:
        known = codecs.lookup(declared[1]).name.replace("-", "_") not in _NO_CHARACTERS
        text = data.decode(declared[1]) if known else ""
    except LookupError:
        raise bad_file(path, f"the file declares the encoding {shortened(declared[1])}, which is unknown") from None
    except ValueError:
        text = ""
    if not text.startswith("<?xml"):
        raise bad_file(path, f"the file is not in the encoding {shortened(declared[1])} that it declares")
    return text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in one object")
    return found


@contextmanager
def _parsing(path: Path, kind: str) -> Iterator[None]:
    """Turn the many ways in which a parser fails into one error that names the file."""
    try:
        yield
    except BadFileError:
        raise
    except _FAILURES as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).split(";")[0]
        raise bad_file(path, f"the file is not valid {kind} ({why})") from None


def _read_bytes(path: Path) -> bytes:
    try:
        return regular(path).read_bytes()
    except OSError as error:
        raise bad_file(path, trouble_with(path) or f"the file cannot be opened ({error.strerror})") from None
