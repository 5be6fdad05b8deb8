"""One writer at a time has a folder, whoever died in it; and a file is there whole or not at all."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from litcam.errors import InputError
from litcam.files import write_whole
from litcam.lock import LOCK_NAME, only_writer

HOLD = """
import sys, time
from litcam.lock import only_writer
with only_writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(120)
"""
HOLD_WITH_A_CHILD = """
import os, sys, time
from litcam.lock import only_writer
with only_writer(sys.argv[1]):
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(120)
"""


@contextmanager
def holder(folder: Path, program: str = HOLD) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Another process that has a folder, and what it printed once it had it."""
    process = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def left_behind(folder: Path, **changes: object) -> None:
    """What a holder leaves that could not clear up."""
    folder.mkdir(exist_ok=True)
    text = {"pid": os.getpid(), "host": socket.gethostname(), "since": "2020-02-03 04:05:06+00:00", **changes}
    (folder / LOCK_NAME).write_text(json.dumps(text))


def test_a_second_process_is_refused_by_pid_host_and_time_until_the_first_is_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, printed):
        assert printed == "held"
        message = rf"is being written by process {process.pid} on {socket.gethostname()} since 20\d\d-.*; wait for it"
        with pytest.raises(InputError, match=message), only_writer(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK_NAME).exists()
        with only_writer(tmp_path):
            assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_forked_process_that_outlives_a_killed_holder_does_not_keep_the_folder(tmp_path: Path) -> None:
    with holder(tmp_path, HOLD_WITH_A_CHILD) as (process, child):
        try:
            process.send_signal(signal.SIGKILL)
            process.wait()
            os.kill(int(child), 0)  # it lives
            with only_writer(tmp_path):
                pass
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_a_dead_holder_is_passed_over_though_its_pid_lives_on_in_another_process(tmp_path: Path) -> None:
    left_behind(tmp_path, pid=os.getppid())
    with only_writer(tmp_path):
        pass
    for text in ("", "{", "[1]", '{"pid": 3}'):  # killed before it had written who it is
        (tmp_path / LOCK_NAME).write_text(text)
        with only_writer(tmp_path):
            pass


def test_a_holder_on_another_host_is_not_taken_for_dead(tmp_path: Path) -> None:
    left_behind(tmp_path, host="elsewhere", pid=7)
    message = rf"was being written by process 7 on elsewhere since 2020-.*delete {tmp_path / LOCK_NAME} and start again"
    with pytest.raises(InputError, match=message), only_writer(tmp_path):
        pass
    (tmp_path / LOCK_NAME).unlink()
    with only_writer(tmp_path):
        pass


def test_where_the_file_system_has_no_locks_the_file_itself_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with only_writer(tmp_path), pytest.raises(InputError, match=r"\(this one\).*delete"), only_writer(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    left_behind(tmp_path)
    with pytest.raises(InputError, match="delete"), only_writer(tmp_path):
        pass


def test_of_many_threads_one_has_the_folder_and_the_others_are_told(tmp_path: Path) -> None:
    inside, overlaps, refused = [0], [0], [0]
    start, count = threading.Barrier(8), threading.Lock()

    def work() -> None:
        start.wait()
        for _ in range(40):
            try:
                with only_writer(tmp_path / "folder"):
                    inside[0] += 1
                    overlaps[0] += inside[0] > 1
                    inside[0] -= 1
            except InputError:
                with count:
                    refused[0] += 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert overlaps == [0]
    assert refused[0] < 8 * 40
    with only_writer(tmp_path), pytest.raises(InputError, match=r"\(this one\)"), only_writer(tmp_path):
        pass


def test_it_ends_with_an_exception_and_leaves_no_folder_that_it_made_in_vain(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    with pytest.raises(KeyError), only_writer(tmp_path / "a" / "a", tmp_path / "b", tmp_path / "b" / "." / "."):
        json.loads((tmp_path / "a" / "a" / LOCK_NAME).read_text())["no such key"]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    with only_writer(tmp_path / "a"):
        write_whole(tmp_path / "a" / "file", "x")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]


def test_of_several_folders_all_are_free_again_if_one_is_taken(tmp_path: Path) -> None:
    with only_writer(tmp_path / "b"):
        with pytest.raises(InputError, match="b is being written"), only_writer(tmp_path / "a", tmp_path / "b"):
            pass
        with only_writer(tmp_path / "a"):
            pass


@pytest.mark.parametrize("where", ["file/folder", "/proc/folder"])
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    message = r"folder.*cannot be written \(.*\); name another folder"
    with pytest.raises(InputError, match=message), only_writer(tmp_path / where):
        pass


def test_a_disk_without_room_for_the_lock_is_told_and_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left"), only_writer(tmp_path / "folder"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "made" / "file"
    write_whole(path, "before ä")
    write, full = Path.write_bytes, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(self: Path, data: bytes) -> int:
        write(self, data[:3])
        raise full

    monkeypatch.setattr(Path, "write_bytes", fill)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole(path, b"after")
    assert caught.value.filename == str(path)
    assert path.read_text("utf-8") == "before ä"
    assert [file.name for file in path.parent.iterdir()] == ["file"]
