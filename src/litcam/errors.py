"""The errors a user can mend: each names what is wrong and the remedy.

The command lines print them in one sentence, without a traceback.
"""


class LitcamError(Exception):
    """Base of every error that litcam raises on purpose."""


class InputError(LitcamError, ValueError):
    """An argument, image, target, path or configuration value is not what is needed."""


class UnsupportedModelError(LitcamError, TypeError):
    """The model is not a Vision Transformer that litcam can explain."""


class CheckpointError(LitcamError, ValueError):
    """A checkpoint file is missing, damaged, unsafe, or was not written by litcam."""
