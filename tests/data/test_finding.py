"""Walking folders: what is data in them, links of every kind, and what is said about entries that cannot be read."""

import os
from pathlib import Path

import pytest
from folder_cases import NFC, NFD, clutter, link, make_pipe, make_socket

from litcam.data.finding import by_name, composed, find_files, is_data, subfolders, trouble_with


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def find(folder: Path, aside: tuple[Path, ...] = ()) -> tuple[list[str], dict[str, str]]:
    """The .jpg files below a folder, and what is noted, by their path from it."""
    noted: dict[str, str] = {}

    def note(path: Path, trouble: str) -> None:
        noted[path.relative_to(folder).as_posix()] = trouble

    files = find_files(folder, {".jpg"}, note, aside)
    return [path.relative_to(folder).as_posix() for path in files], noted


def test_hidden_and_system_entries_are_no_data_with_all_that_is_in_them(tmp_path: Path) -> None:
    touch(tmp_path / "cat" / "0.jpg", tmp_path / "cat0.jpg" / "1.JPG", tmp_path / "notes.txt")
    clutter(tmp_path)
    clutter(tmp_path / "cat")
    assert find(tmp_path) == (["cat/0.jpg", "cat0.jpg/1.JPG"], {})
    assert [path.name for path in subfolders(tmp_path, lambda path, trouble: None)] == ["cat", "cat0.jpg"]


def test_a_folder_below_a_hidden_one_is_searched_when_it_is_named(tmp_path: Path) -> None:
    touch(tmp_path / ".cache" / "@eaDir" / "0.jpg")
    assert find(tmp_path / ".cache" / "@eaDir")[0] == ["0.jpg"]


def test_names_that_only_look_like_those_of_a_system_are_data() -> None:
    for name in ("git", "_x.jpg", "thumbs.jpg", "eaDir", "recycle", "MACOSX", "a.ipynb_checkpoints", "~cat"):
        assert is_data(name)
    for name in ("THUMBS.DB", "Desktop.ini", "@EADIR", "Lost+Found"):
        assert not is_data(name)


def test_files_come_in_the_order_of_their_paths_whatever_form_their_accents_have(tmp_path: Path) -> None:
    for form in (NFC, NFD):
        names = ["a/b.jpg", "a.jpg", "a-b/c.jpg", "cafd.jpg", f"{form}.jpg", "cafz.jpg"]
        touch(*(tmp_path / form / name for name in names))
        found = [composed(name) for name in find(tmp_path / form)[0]]
        assert found == ["a/b.jpg", "a-b/c.jpg", "a.jpg", "cafd.jpg", "cafz.jpg", f"{NFC}.jpg"]
    paths = [Path(name) for name in ("b", "a-b/c", "a", "a/b", "a/b/c", "B")]
    assert sorted(paths, key=by_name) == sorted(paths)


def test_links_to_files_and_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path / "store" / "cat" / "deep" / "0.jpg", tmp_path / "store" / "1.data")
    link(tmp_path / "root" / "cat", tmp_path / "store" / "cat")
    link(tmp_path / "root" / "dog" / "1.jpg", tmp_path / "store" / "1.data")
    link(tmp_path / "root" / "dog" / "2.jpg", "1.jpg")
    assert find(tmp_path / "root") == (["cat/deep/0.jpg", "dog/1.jpg", "dog/2.jpg"], {})
    assert find(link(tmp_path / "other", "root"))[0] == ["cat/deep/0.jpg", "dog/1.jpg", "dog/2.jpg"]


def test_links_that_lead_nowhere_or_in_a_circle_are_noted(tmp_path: Path) -> None:
    touch(tmp_path / "0.jpg", tmp_path / "file")
    link(tmp_path / "1.jpg", "gone.jpg")
    link(tmp_path / "2.jpg", "3.jpg")
    link(tmp_path / "3.jpg", "2.jpg")
    link(tmp_path / "4.jpg", "4.jpg")
    link(tmp_path / "5.jpg", "file/x.jpg")
    link(tmp_path / "001.cat", "gone")
    link(tmp_path / "notes.txt", "gone.txt")
    files, noted = find(tmp_path)
    assert files == ["0.jpg"]
    assert noted == {
        "001.cat": "the link leads nowhere",
        "1.jpg": "the link leads nowhere",
        "2.jpg": "the link leads in a circle",
        "3.jpg": "the link leads in a circle",
        "4.jpg": "the link leads in a circle",
        "5.jpg": "the file cannot be opened (Not a directory)",
    }


def test_links_to_a_folder_that_they_lie_in_are_noted(tmp_path: Path) -> None:
    root = tmp_path / "data" / "train"
    touch(root / "cat" / "0.jpg", tmp_path / "data" / "val" / "cat" / "1.jpg", tmp_path / "store" / "dog" / "2.jpg")
    link(root / "cat" / "self", ".")
    link(root / "cat" / "up", "..")
    link(root / "cat" / "beyond", tmp_path / "data")  # holds val, whose images would be taken for cats of train
    link(root / "dog", tmp_path / "store" / "dog")
    link(tmp_path / "store" / "dog" / "store", tmp_path / "store")
    files, noted = find(root)
    assert files == ["cat/0.jpg", "dog/2.jpg"]
    assert set(noted) == {"cat/self", "cat/up", "cat/beyond", "dog/store"}
    assert set(noted.values()) == {"the link leads back to a folder that it lies in"}


def test_of_several_ways_to_a_folder_the_shortest_without_links_is_taken(tmp_path: Path) -> None:
    for number in range(9):  # every way through all of them would be one of 986,409
        touch(tmp_path / f"{number}" / "0.jpg")
        for other in set(range(9)) - {number}:
            link(tmp_path / f"{number}" / f"to{other}", f"../{other}")
    touch(tmp_path / "deep" / "folder" / "1.jpg")
    link(tmp_path / "deep" / "again", "folder")
    files, noted = find(tmp_path)
    assert files == [*(f"{number}/0.jpg" for number in range(9)), "deep/folder/1.jpg"]
    assert len(noted) == 9 * 8 + 1
    assert noted["deep/again"] == f"it is the folder {tmp_path}/deep/folder once more, for one of them is a link"


def test_only_regular_files_are_taken(tmp_path: Path) -> None:
    make_pipe(tmp_path / "pipe.jpg")
    make_socket(tmp_path / "socket.jpg")
    link(tmp_path / "device.jpg", "/dev/zero")
    link(tmp_path / "to_pipe.jpg", "pipe.jpg")
    make_pipe(tmp_path / "pipe")  # which nobody takes for an image
    kinds = {"device": "device", "pipe": "named pipe", "socket": "socket", "to_pipe": "named pipe"}
    expected = {
        f"{name}.jpg": f"the file cannot be opened (it is a {kind}, no regular file)" for name, kind in kinds.items()
    }
    assert find(tmp_path) == ([], expected)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_folders_that_are_not_to_be_opened_are_noted(tmp_path: Path) -> None:
    touch(tmp_path / "closed" / "0.jpg", tmp_path / "open" / "1.jpg")
    link(tmp_path / "way", "closed/0.jpg")
    (tmp_path / "closed").chmod(0)
    try:
        assert find(tmp_path) == (
            ["open/1.jpg"],
            {
                "closed": "the folder cannot be opened (Permission denied)",
                "way": "the file cannot be opened (Permission denied)",
            },
        )
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_a_folder_that_the_system_does_not_open_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "closed" / "0.jpg", tmp_path / "open" / "1.jpg")
    scan = os.scandir

    def refuse(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr("litcam.data.finding.os.scandir", refuse)
    assert find(tmp_path) == (["open/1.jpg"], {"closed": "the folder cannot be opened (Permission denied)"})


def test_folders_aside_are_not_searched(tmp_path: Path) -> None:
    touch(tmp_path / "a" / "out" / "sub" / "0.jpg", tmp_path / "a" / "1.jpg")
    link(tmp_path / "results", "a/out")
    assert find(tmp_path, (tmp_path / "results",)) == (["a/1.jpg"], {})


def test_what_is_wrong_with_a_path_is_said(tmp_path: Path) -> None:
    touch(tmp_path / "file")
    assert trouble_with(tmp_path / "file") is None
    assert trouble_with(tmp_path / "none") == "the file does not exist"
    assert trouble_with(tmp_path) == "the file cannot be opened (it is a folder, no regular file)"
    assert trouble_with(tmp_path / ("x" * 300)) == "the file cannot be opened (File name too long)"
