"""Annotation files as text, XML and JSON: every encoding that can be told, and each failure of a parser named."""

import json
from pathlib import Path
from typing import Any

import pytest

from litcam.data.parsing import read_json, read_lines, read_xml
from litcam.data.reading import BadFileError

BOMB = (
    "<!DOCTYPE a [<!ENTITY a 'aaaaaaaaaa'>"
    + "".join(f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(9))
    + "]><annotation>&j;</annotation>"
)


def xml_file(path: Path, declared: str | None, body: str, encoding: str | None = None) -> Path:
    declaration = "" if declared is None else f'<?xml version="1.0" encoding="{declared}"?>'
    path.write_bytes((declaration + body).encode(encoding or declared or "utf-8"))
    return path


@pytest.mark.parametrize(
    ("declared", "encoding", "word"),
    [
        ("GBK", None, "猫"),
        ("gb2312", None, "猫"),
        ("GB18030", None, "猫"),
        ("Shift_JIS", None, "猫"),
        ("EUC-JP", None, "猫"),
        ("ISO-2022-JP", None, "猫"),
        ("EUC-KR", None, "고양이"),
        ("Big5", None, "貓"),
        ("windows-1251", None, "кот"),
        ("ISO-8859-1", None, "Kätzchen"),
        ("cp037", None, "cat"),
        ("UTF-7", None, "猫"),
        ("UTF-8", None, "猫"),
        ("UTF-8", "utf-8-sig", "猫"),
        ("UTF-16", None, "猫"),
        ("UTF-16", "utf-16-le", "猫"),
        ("UTF-16", "utf-16-be", "猫"),
        ("UTF-32", None, "猫"),
        (None, "utf-16-be", "猫"),
        (None, "utf-8-sig", "猫"),
        ("GBK", "utf-8-sig", "猫"),
        (None, None, "猫"),
    ],
)
def test_xml_is_read_in_its_encoding(tmp_path: Path, declared: str | None, encoding: str | None, word: str) -> None:
    """A byte order mark proves the encoding, whatever the declaration says."""
    assert read_xml(xml_file(tmp_path / "a.xml", declared, f"<a>{word}</a>", encoding)).text == word


@pytest.mark.parametrize("declared", ["klingon", "base64", "rot13", "zip", "hex", "aliases", "../cp037", "", "x" * 300])
def test_an_encoding_that_is_none_is_named(tmp_path: Path, declared: str) -> None:
    """Those of Python that change text or bytes, and no characters, are not run."""
    with pytest.raises(BadFileError, match=r"a.xml: the file declares the encoding '.*', which is unknown$") as error:
        read_xml(xml_file(tmp_path / "a.xml", declared, "<a/>", "ascii"))
    assert len(str(error.value)) < len(str(tmp_path)) + 120


@pytest.mark.parametrize(
    ("declared", "encoding"),
    [
        ("us-ascii", "utf-8"),
        ("UTF-8", "latin-1"),
        ("EUC-KR", "latin-1"),
        ("UTF-16", "ascii"),
        ("punycode", "ascii"),
        ("unicode_escape", "ascii"),
        ("idna", "ascii"),
        ("undefined", "ascii"),
    ],
)
def test_a_file_in_another_encoding_than_it_declares_is_named(tmp_path: Path, declared: str, encoding: str) -> None:
    word = "cat" if encoding == "ascii" else "Kätzchen"
    with pytest.raises(BadFileError, match=f"a.xml: the file is not in the encoding '{declared}' that it declares"):
        read_xml(xml_file(tmp_path / "a.xml", declared, f"<a>{word}</a>", encoding))


@pytest.mark.parametrize("declared", [None, "GBK", "Shift_JIS", "UTF-16", "UTF-7", "cp037"])
def test_an_xml_bomb_is_refused_in_every_encoding(tmp_path: Path, declared: str | None) -> None:
    with pytest.raises(BadFileError, match=r"a.xml: the file declares XML entities"):
        read_xml(xml_file(tmp_path / "a.xml", declared, BOMB))


def test_no_other_file_is_read_along(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    doctype = f"<!DOCTYPE a [<!ENTITY x SYSTEM 'file://{tmp_path}/secret'>]>"
    with pytest.raises(BadFileError, match="declares XML entities"):
        read_xml(xml_file(tmp_path / "a.xml", None, f"{doctype}<a>&x;</a>"))
    with pytest.raises(BadFileError, match=r"the file is not valid XML \(undefined entity"):
        read_xml(xml_file(tmp_path / "a.xml", None, f"<!DOCTYPE a SYSTEM 'file://{tmp_path}/secret'><a>&x;</a>"))


@pytest.mark.parametrize("body", ["", "<a>", "<a>\0</a>", "no XML", "<a></b>", "\n<?xml version='1.0'?><a/>"])
def test_what_is_no_xml_is_named(tmp_path: Path, body: str) -> None:
    with pytest.raises(BadFileError, match=r"a.xml: the file is not valid XML \(.*\)$"):
        read_xml(xml_file(tmp_path / "a.xml", None, body))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "Expecting value"),
        (b"{", "Expecting property name"),
        (b"[" * 200_000 + b"]" * 200_000, "it is nested too deeply"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "it is nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", "Exceeds the limit"),
        (b"[1e]", "Expecting ',' delimiter"),
        (b"[01]", "Expecting ',' delimiter"),
        (b'{"a": 1, "b": {"a": 1, "a": 2}}', "the key 'a' stands twice in one object"),
        (b'{"\xff": 1}', "'utf-8' codec can't decode"),
        (b"\x1f\x8b\x08\x00", "'utf-8' codec can't decode"),
    ],
)
def test_what_is_no_json_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(BadFileError) as error:
        read_json(tmp_path / "a.json")
    assert str(error.value).startswith(f"{tmp_path / 'a.json'}: the file is not valid JSON (")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_json_is_read_in_every_encoding_that_it_may_have(tmp_path: Path, encoding: str) -> None:
    data: dict[str, Any] = {"name": ["猫", 1]}
    (tmp_path / "a.json").write_bytes(json.dumps(data, ensure_ascii=False).encode(encoding))
    assert read_json(tmp_path / "a.json") == data


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lines_come_without_byte_order_mark_and_blanks(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes("\r\n 猫 \r\n\t\r\nred cat\u2028\r\n\r\n".encode(encoding))
    assert read_lines(tmp_path / "a.txt") == [(2, "猫"), (4, "red cat")]
