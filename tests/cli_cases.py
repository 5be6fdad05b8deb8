"""The command lines as a user types them, and a small run."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "120"}
SMALL_RUN = [
    "--model.pretrained=false",
    '--model.model_kwargs={"depth": 2, "embed_dim": 24, "num_heads": 2}',
    "--data.fog=0",
    "--data.num_train=48",
    "--data.num_val=21",
    "--data.num_test=10",
    "--data.batch_size=16",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
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
