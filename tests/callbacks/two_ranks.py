"""Runs a script as the two processes of one training."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_two_ranks(script: str | Path, *arguments: str) -> None:
    """Run ``script *arguments <rank>`` for ranks 0 and 1, which find each other; fails unless both end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    folders = [
        str(Path(__file__).parents[1]),
        str(Path(__file__).parent),
        *filter(None, [os.environ.get("PYTHONPATH")]),
    ]
    paths = os.pathsep.join(folders)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments, str(rank)],
            env={**shared, "NODE_RANK": "0", "LOCAL_RANK": str(rank), "PYTHONPATH": paths},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()  # one that waits for the other for ever
    assert [process.returncode for process in processes] == [0, 0], "\n".join(output[-3000:] for output in outputs)
