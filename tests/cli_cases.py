"""The command lines as a user types them, and a small run."""

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
SMALL_RUN = [
    "--model.pretrained=false",
    '--model.model_kwargs={"depth": 2, "embed_dim": 24, "num_heads": 2}',
    "--data.fog=0",  # in fog a net so small has constant maps
    "--data.num_train=48",
    "--data.num_val=21",
    "--data.num_test=10",
    "--data.batch_size=16",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
]


def command(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run train.py or evaluate.py as a user does."""
    return subprocess.run(
        [sys.executable, str(ROOT / script), *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        check=False,
    )


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A small run whose folder is ``folder/digits/version_0``."""
    return command("train.py", *SMALL_RUN, f"--trainer.logger.init_args.save_dir={folder}", *arguments)


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file grows beyond this size: the system answers as a full disk or a quota does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
