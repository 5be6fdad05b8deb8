"""The processes of one training: started from the right command line, and ended together. Knows neither model nor data.

Lightning or a launcher such as torchrun starts them; the first one, of rank 0, decides when all end.
"""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher, _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

import __main__
from litcam.callbacks.reporting import run_folder
from litcam.errors import InputError, LostProcessError
from litcam.progress import print_line

TERMINATED = 128 + signal.SIGTERM  # the status by which shells and schedulers know it
_HEAD_START = 8.0  # seconds for which other processes wait for the first one to fail of the same
_PATIENCE = 10.0  # seconds for which they wait for it to end the training that a signal ends
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Connection refused", "timed out")


def check_start(trainer: L.Trainer, arguments: Sequence[str] | None) -> None:
    """Let Lightning start further processes only where it starts this training again.

    It runs the program's own command line, ``sys.argv``, once more for each.

    Args:
        trainer: whose processes they are.
        arguments: those of the training, where it was called with some; None for the program's own.

    Raises:
        InputError: if that command line is of another program, or is not known; and where another launcher has
            started the processes, if these are not as many as the trainer's devices.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return
    try:
        launcher.cluster_environment.validate_settings(launcher.num_processes, launcher.num_nodes)
    except ValueError as error:
        raise InputError(f"The processes that were started are not those of the trainer: {error}") from error
    if launcher.num_processes == 1 or launcher.cluster_environment.creates_processes_externally:
        return
    can_be_run = __main__.__spec__ is not None or Path(sys.argv[0]).is_file()
    if not can_be_run or (arguments is not None and list(arguments) != sys.argv[1:]):
        raise InputError(
            f"{launcher.num_processes} processes cannot be started from here: each would run the program's own "
            f"command line, {shlex.join(sys.argv)!r}, which is not that of this training; run train.py with these "
            f"arguments, or this program under torchrun --nproc_per_node={launcher.num_processes}."
        )


def wait_for_the_first() -> None:
    """Let the first process say first what is wrong: if it is the same, this one is ended before it repeats it."""
    if rank_zero_only.rank:  # type: ignore[attr-defined]  # set by Lightning
        time.sleep(_HEAD_START)


class Ending(L.Callback):
    """Ends all processes of a training together, and says how to resume one that Ctrl-C or SIGTERM has ended.

    SIGTERM ends it after the batch at hand, with status 143. Under Slurm Lightning's own handlers stay, which save and
    requeue. The first process decides; the others go when they lose it, or in ten seconds.
    """

    def __init__(self) -> None:
        self.asked = False  # by a signal
        self._folder: Path | None = None
        self._config: Path | None = None

    @contextmanager
    def together(self, trainer: L.Trainer) -> Iterator[None]:
        """Around the fit: of what ends it in one process one is told, once, and none stays behind.

        Raises:
            LostProcessError: if another process has gone without a word of this one.
            SystemExit: after SIGTERM, and where a process that this one has started has said what is wrong.
        """
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        if not isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):  # else this one waits for the others
            self._listen(trainer)
        try:
            yield
        except BaseException as error:
            lost = isinstance(error, RuntimeError) and any(words in str(error) for words in _LOST)
            status = _end_children(trainer, _HEAD_START if lost else 0)
            if self.asked or isinstance(error, SIGTERMException):
                raise SystemExit(TERMINATED) from None
            if lost and status > 0:
                raise SystemExit(status) from None
            if lost:
                raise LostProcessError(
                    "Another process of the training has ended, or cannot be reached; what it said tells why "
                    f"(here: {str(error).splitlines()[0]})."
                ) from error
            raise
        else:
            _end_children(trainer, _PATIENCE)
        finally:
            if threading.current_thread() is threading.main_thread():
                for number, handler in before.items():
                    signal.signal(number, handler)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Learn the folders while all processes are there, for both are collectives."""
        folder, log_dir = run_folder(trainer), trainer.log_dir
        if folder is not None:
            self._folder, self._config = folder, Path(log_dir or folder) / "config.yaml"  # as LightningCLI writes it

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen(trainer)  # Lightning has set handlers of its own, which let the processes talk amid other talk

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._end_if_asked(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._end_if_asked(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Say how to go on; without a word to other processes, which may be gone."""
        terminated = self.asked or isinstance(exception, SIGTERMException)
        last = self._folder / "checkpoints" / "last.ckpt" if self._folder is not None else None
        if not trainer.is_global_zero or not (terminated or isinstance(exception, KeyboardInterrupt)):
            return
        if last is not None and last.exists() and not _requeued(trainer):
            print_line(
                Console(),
                f"\n{'Terminated' if terminated else 'Interrupted'}. To resume:\n"
                f"  python train.py --config {self._config} --ckpt_path {last}",
            )

    def _listen(self, trainer: L.Trainer) -> None:
        if threading.current_thread() is not threading.main_thread() or SLURMEnvironment.detect():
            return
        signal.signal(signal.SIGTERM, self._ask if trainer.is_global_zero else self._follow)
        if not trainer.is_global_zero:
            signal.signal(signal.SIGINT, self._follow)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _follow(self, number: int, frame: FrameType | None) -> None:
        """The first process has got the signal too; while it ends the training it needs the others."""
        if not self.asked:
            timer = threading.Timer(_PATIENCE, os._exit, [TERMINATED])
            timer.daemon = True
            timer.start()
        self.asked = True

    def _end_if_asked(self, trainer: L.Trainer) -> None:
        if self.asked and trainer.is_global_zero:
            raise SIGTERMException(TERMINATED)


def _end_children(trainer: L.Trainer, patience: float) -> int:
    """See that the processes which this one has started end; above 0, the status of one that has failed by itself.

    Args:
        trainer: of them.
        patience: seconds to wait until all have ended by themselves, or one has failed.
    """
    launcher = trainer.strategy.launcher
    children: list[subprocess.Popen[Any]] = launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline and any(child.poll() is None for child in children):
        if any(child.poll() for child in children):
            break
        time.sleep(0.05)
    status = max((child.poll() or 0 for child in children), default=0)  # below 0: killed, and so without a word
    for child in children:
        child.kill()
        child.wait()
    return status


def _requeued(trainer: L.Trainer) -> bool:
    """Whether Lightning has saved the run for Slurm, which starts it again and finds that checkpoint by itself."""
    return SLURMEnvironment.detect() and any(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
