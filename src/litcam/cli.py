"""The command line behind train.py and evaluate.py: LightningCLI with litcam's defaults and its one-sentence errors.

The only module that knows LightningCLI.
"""

import errno
import os
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeGuard

import lightning as L
from jsonargparse import ActionConfigFile, ArgumentParser
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.trainer.connectors import checkpoint_connector

from litcam.callbacks import ExactResume, InitialValidation, RunSummary, StepSeed
from litcam.callbacks.drift_figures import Filmstrip
from litcam.callbacks.progress_bars import default_bar
from litcam.checkpoints import WholeCheckpointIO, load_weights, read_checkpoint
from litcam.classifier import ViTClassifier
from litcam.data import ImageDataModule
from litcam.data.check import check_data
from litcam.errors import DISK_FULL, CheckpointError, InputError, LitcamError, brief
from litcam.evaluation import DEFAULT_METHODS, DEFAULT_METRICS, list_metrics
from litcam.evaluation.command import evaluate_runs, explain_own_images, redraw_drift
from litcam.explainers import list_explainers
from litcam.processes import Ending, check_start, wait_for_the_first

_NO_MORE = DISK_FULL | {errno.EROFS}  # of a disk that takes no more, or nothing


class LitcamCLI(LightningCLI):
    """LightningCLI for a ViTClassifier and one of litcam's data modules."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--ckpt_path", type=str | None, default=None, help="checkpoint of a run to resume")
        parser.add_argument(
            "--initial_validation",
            type=bool,
            default=True,
            help="validate before the first step too, so that every curve begins before the training",
        )
        parser.add_argument(
            "--check_data", action="store_true", help="read every file of the data once, tell what there is, and leave"
        )

    def before_instantiate_classes(self) -> None:
        if self.config["check_data"]:
            self.config["model"]["pretrained"] = False  # reading data takes no weights

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        named = self._get(self.config_init, "trainer.callbacks") or []
        named = [*named] if isinstance(named, list) else [named]  # the trainer adds to that list
        trainer = super().instantiate_trainer(**kwargs)
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        # Before the other callbacks, whatever they draw.
        initial = [InitialValidation()] if self.config["initial_validation"] else []
        callbacks[:0] = [StepSeed(self.config["seed_everything"]), *initial]
        # After them, but before those that save: a checkpoint holds the history up to its own validation.
        savers = [number for number, callback in enumerate(callbacks) if isinstance(callback, Checkpoint)]
        place = min(savers, default=len(callbacks))
        callbacks[place:place] = [RunSummary(), ExactResume()]
        bar = trainer.progress_bar_callback
        if bar is not None and bar not in named:
            callbacks[callbacks.index(bar)] = default_bar(sys.stdout.isatty())  # in the place of Lightning's own
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # none of the user's own
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        self.ending = Ending()
        callbacks.append(self.ending)
        return trainer


def train(default_config: Path, args: Sequence[str] | None = None) -> None:
    """Fine-tune as a config says, overridden by the command line; without ``--config``, as ``default_config`` says.

    With ``--check_data`` only the data are read; the process ends with status 1 if a file of them is not usable.
    Ends the process with status 2 and one sentence when the configuration, the data or a checkpoint is not usable.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if not any(argument.split("=")[0] in ("--config", "-c") for argument in arguments):
        arguments = ["--config", str(default_config), *arguments]
    with _plain_errors() as errors:
        cli = _parse(arguments)
        if cli.config["check_data"]:
            raise SystemExit(0 if check_data(cli.datamodule) else 1)
        ckpt_path = cli.config["ckpt_path"]
        if ckpt_path is not None:
            checkpoint = read_checkpoint(ckpt_path, to_resume=True)
            load_weights(cli.model, checkpoint["state_dict"], ckpt_path)
            cli.model.take_classes(checkpoint)  # so that other classes show before any work
        errors.folder = _check_writable(cli.trainer)
        check_start(cli.trainer, args)
        try:
            with cli.ending.together(cli.trainer):
                cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=ckpt_path, weights_only=True)
        except Exception as error:
            if _was_restoring(error) and not isinstance(error, LitcamError):
                raise CheckpointError(
                    f"{ckpt_path} holds a state that this training cannot go on with ({brief(error)}); resume with the "
                    "config of its run, or start from its weights: --model.pretrained."
                ) from error
            raise


def _was_restoring(error: Exception) -> bool:
    """Whether an error came up while Lightning gave everything its state out of a checkpoint."""
    codes = (frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__))
    names = [code.co_name for code in codes if code.co_filename == checkpoint_connector.__file__]
    return any(name.startswith(("resume_start", "restore")) for name in names)


def _parse(arguments: ArgsType) -> LitcamCLI:
    command_line, sys.argv = sys.argv, sys.argv[:1]  # LightningCLI warns of arguments beside the process's own
    try:
        return LitcamCLI(
            model_class=ViTClassifier,
            datamodule_class=ImageDataModule,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            args=arguments,
            run=False,
        )
    finally:
        sys.argv = command_line  # further processes are started from it


def _check_writable(trainer: L.Trainer) -> str:
    """Fail before training if the run folder cannot be written; else say what it is."""
    folders = [str(logger.save_dir or trainer.default_root_dir) for logger in trainer.loggers]
    folders = folders or [str(trainer.default_root_dir)]
    for folder in folders:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise InputError(
                f"The run folder {folder!r} cannot be written ({error.strerror}); "
                "name another with --trainer.logger.init_args.save_dir."
            ) from error
    return folders[0]


class _plain_errors:
    """Print litcam's own errors, Lightning's about its options, and a full disk, as one sentence; leave with status 2.

    All else is let through. ``folder`` is where a file lies whose name the system does not tell.
    """

    folder = "A folder"

    def __enter__(self) -> "_plain_errors":
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        _silence_known_warnings()
        self.hook, threading.excepthook = threading.excepthook, self._thread_failed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        threading.excepthook = self.hook
        if not isinstance(error, Exception):
            return
        wait_for_the_first()
        causes = list(_causes(error))
        told = [str(cause) for cause in causes if isinstance(cause, LitcamError)]
        told += [" ".join(str(cause).split()) for cause in causes if isinstance(cause, MisconfigurationException)]
        full = sorted((cause for cause in causes if _is_full(cause)), key=lambda cause: cause.filename is None)
        told += [
            f"{cause.filename or self.folder} could not be written ({cause.strerror}): make room on its disk, or name "
            "another folder."
            for cause in full
        ]
        if told:
            print(f"error: {told[0]}", file=sys.stderr)
            raise SystemExit(2) from None

    def _thread_failed(self, failure: Any) -> None:
        """Let TensorBoard's thread fail in silence on a full disk: the next call of it raises the same."""
        if not _is_full(failure.exc_value):
            self.hook(failure)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what led to it: jsonargparse wraps what a constructor raises."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException | None) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in _NO_MORE


def _silence_known_warnings() -> None:
    """Hide hints that do not apply here, each with its reason."""
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # lightning calls it by its older names
    hints = (
        "The '.*_dataloader' does not have many workers",  # the worker count is the user's, in the config
        "`isinstance.treespec, LeafSpec.` is deprecated",  # inside lightning and torch
        "It is recommended to use `self.log.*sync_dist=True",  # callbacks log what is the same in every process
        "The ``compute`` method of metric .* was called before",  # a process may have none of the watched images
        "The number of training batches .* is smaller than the logging interval",  # short runs log at epoch ends
        "Image size .* could be decompression bomb",  # litcam refuses such an image by name
    )
    for hint in hints:
        warnings.filterwarnings("ignore", message=f".*{hint}.*")


def evaluate(args: Sequence[str] | None = None) -> None:
    """Score the explanations of checkpoints; see :func:`litcam.evaluation.command.evaluate_runs`.

    With ``--images`` explain these; see :func:`litcam.evaluation.command.explain_own_images`.
    With ``--drift`` draw that of a run anew; see :func:`litcam.evaluation.command.redraw_drift`.
    Ends the process with status 2 and one sentence when a checkpoint or an option is not usable.
    """
    parser = ArgumentParser(prog="evaluate.py", description="Score the explanations of checkpoints of train.py.")
    parser.add_argument("--config", action=ActionConfigFile, help="options from a YAML file, such as configs/paper/…")
    parser.add_argument("--ckpt_path", type=str, nargs="+", help="checkpoints, or run folders: model and data as there")
    parser.add_argument("--model", type=dict[str, Any] | None, help="of ViTClassifier, where there is no checkpoint")
    parser.add_argument(
        "--data", type=dict[str, Any] | None, help="what is to differ in the data: --data.classes 2; or other data"
    )
    parser.add_argument(
        "--methods",
        type=str,
        nargs="+",
        default=list(DEFAULT_METHODS),
        help="explainers, with options if wanted (reciprocam:kernel=dirac): "
        f"{', '.join(list_explainers())}, captum:IntegratedGradients, …",
    )
    parser.add_argument(
        "--metrics",
        type=str,
        nargs="+",
        help=f"with options if wanted (perturbation:protocol=road): {', '.join(list_metrics())} "
        f"(default: {', '.join(DEFAULT_METRICS)}, as far as the data allow)",
    )
    parser.add_argument("--split", type=Literal["train", "val", "test"], default="val", help="of the data")
    parser.add_argument("--target", type=Literal["true", "predicted"], default="true", help="class to explain")
    parser.add_argument(
        "--unknown_classes",
        type=Literal["raise", "skip"],
        default="raise",
        help="skip leaves out classes of the data that the model does not know, and counts them",
    )
    parser.add_argument("--output", type=str | None, help="folder of the results (default: in the run folder)")
    parser.add_argument("--num_images", type=int | None, help="a random subset of the images (default: all)")
    parser.add_argument("--perturbation_images", type=int | None, default=256, help="of the curves; null: all")
    parser.add_argument("--report_images", type=int, default=200, help="images in the gallery of the report")
    parser.add_argument("--num_workers", type=int | None, help="loading processes, if other than in the training")
    parser.add_argument("--seed", type=int, default=0, help="of the subsets")
    parser.add_argument(
        "--images", type=str, nargs="+", help="explain these images, and those of these folders, instead"
    )
    parser.add_argument(
        "--targets", type=str, nargs="+", help="of --images: classes by name or index, not the predicted"
    )
    parser.add_argument(
        "--drift", type=str | None, help="draw the drift of the maps that DriftMonitor left in this run folder, instead"
    )
    parser.add_argument("--filmstrip", type=Filmstrip | None, help="of --drift: its rows, columns and colormap")
    with _plain_errors():
        options = parser.parse_args(None if args is None else list(args)).as_dict()
        options.pop("config")
        given = {name for name, value in options.items() if value != parser.get_default(name)}
        images, targets = options.pop("images"), options.pop("targets")
        drift, filmstrip = options.pop("drift"), options.pop("filmstrip")
        if images is None and targets is not None:
            raise InputError("targets are the classes of your own images: name these with --images.")
        if drift is None and filmstrip is not None:
            raise InputError("filmstrip is the picture of a run's drift: name the run folder with --drift.")
        if drift is not None:
            if others := sorted(given - {"drift", "filmstrip", "data", "output"}):
                raise InputError(
                    "--drift draws maps that are there already, with --filmstrip, --data and --output alone: leave out "
                    f"{', '.join(f'--{name}' for name in others)}."
                )
            redraw_drift(drift, options["data"], options["output"], Filmstrip(**(filmstrip or {})))
        elif images is None:
            evaluate_runs(**options)
        else:
            common = {key: options[key] for key in ("ckpt_path", "model", "data", "methods", "output")}
            explain_own_images(images, targets=targets, **common)
