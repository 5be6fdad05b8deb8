"""timm's Vision Transformers by name, with weights that were checked before they went in."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

import litcam.models  # noqa: F401  # registers the packaged model with timm
from litcam.checkpoints import check_finite, loading, read_weights
from litcam.errors import InputError, LitcamError, UnsupportedModelError, brief, some

# What timm's constructors open or ask a hub for, at any depth of their arguments.
_PLACES = {"checkpoint_path", "pretrained", "file", "url", "hf_hub_id", "hf_hub_filename", "state_dict", "source"}


def create_net(name: str, num_classes: int, pretrained: bool | str, model_kwargs: Mapping[str, Any]) -> Any:
    """A timm model with a new head.

    Args:
        name: of the model.
        num_classes: size of the head.
        pretrained: whether with timm's weights; or a local file, which goes the same way as a downloaded one.
        model_kwargs: further arguments of timm's constructor.

    Raises:
        InputError: for an unknown name, arguments that timm does not take, a missing file, or weights elsewhere than
            in ``pretrained``.
        CheckpointError: if the weights are damaged, do not fit or are not finite.
        UnsupportedModelError: if the model is not a Vision Transformer with patch tokens.
    """
    _check_name(name)
    if places := sorted(_PLACES & set(_keys(model_kwargs))):
        raise InputError(f"model_kwargs say where weights are ({some(places)}); name a file as pretrained instead.")
    kwargs = dict(model_kwargs)
    context: AbstractContextManager[None] = nullcontext()
    if isinstance(pretrained, str):
        if not Path(pretrained).exists():
            raise InputError(f"pretrained names the file {pretrained!r}, which does not exist.")
        overlay = {**(kwargs.get("pretrained_cfg_overlay") or {}), "state_dict": read_weights(pretrained)}
        kwargs["pretrained_cfg_overlay"] = overlay
        context = loading(pretrained, partial(_may_lack, name, pretrained))
    try:
        with context:
            net = timm.create_model(name, pretrained=bool(pretrained), num_classes=num_classes, **kwargs)
    except LitcamError:
        raise
    except TypeError as error:
        raise InputError(f"timm's {name} does not take these model_kwargs: {error}.") from error
    except Exception as error:  # of any kind, by what a constructor makes of its arguments
        raise _not_created(name, pretrained, model_kwargs, error) from error
    if not hasattr(net, "blocks") or not hasattr(net, "patch_embed"):
        raise UnsupportedModelError(
            f"{name} is a {type(net).__name__}, not a Vision Transformer with patch tokens and blocks; "
            "take one of timm's vit, deit, deit3, dinov2, dinov3, clip, siglip, beit or eva models."
        )
    config: Any = net.pretrained_cfg
    config.pop("state_dict", None)
    if pretrained:
        check_finite(net, pretrained if isinstance(pretrained, str) else f"What timm has for {name}")
    return net


def _check_name(name: object) -> None:
    """Raise InputError unless timm has a model of this name."""
    if isinstance(name, str) and timm.is_model(name):
        return
    similar = get_close_matches(str(name), timm.list_models(), n=3)
    hint = f"; did you mean {' or '.join(similar)}?" if similar else "."
    raise InputError(f"timm has no model {name!r}{hint} timm.list_models() shows all.")


def _keys(arguments: object) -> Iterator[str]:
    """The names of arguments that are set, at any depth."""
    if isinstance(arguments, Mapping):
        for key, value in arguments.items():
            if value:
                yield str(key)
            yield from _keys(value)
    elif isinstance(arguments, list | tuple):
        for value in arguments:
            yield from _keys(value)


def _may_lack(name: str, path: str, net: nn.Module, weights: Mapping[str, Any]) -> set[str]:
    """What a file of weights may lack: the head, and what model_kwargs add to the model; a warning tells of that."""
    config: Any = net.pretrained_cfg
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    head = {own for own in net.state_dict() if own.rpartition(".")[0] in heads}
    missing = net.state_dict().keys() - weights.keys() - head
    if not missing:
        return head
    added = missing - timm.create_model(name, pretrained=False).state_dict().keys()
    if added == missing:
        rank_zero_warn(f"{path} has no {some(added)}: what model_kwargs add to {name} starts from random weights.")
    return head | added


def _not_created(name: str, pretrained: bool | str, arguments: Mapping[str, Any], error: Exception) -> InputError:
    """The error for what a constructor of timm raised."""
    if pretrained is True and isinstance(error, OSError | RuntimeError):
        unsafe = isinstance(error.__cause__, UnpicklingError)  # timm would advise to run what there is
        reason = "they hold Python objects that could run code" if unsafe else brief(error)
        return InputError(
            f"The weights of {name} could not be loaded ({reason}); "
            "give a local file as pretrained, or false to start from random weights."
        )
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    weights = f" and the weights of {pretrained}" if isinstance(pretrained, str) else ""
    return InputError(f"timm cannot make {name} with {given or 'its own arguments'}{weights} ({brief(error)}).")
