"""What logits say: the scores, probabilities and predictions of classes, of a head of one output too.

A head of several outputs has a class for each. One of a single output z has the classes 0 and 1 with the probabilities
sigmoid(−z) and sigmoid(z); where its model is declared a regression, it has one target, 0, whose score is z itself.

Logits that are NaN say nothing: a prediction would be made of them like of any number, and always of the same class.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from litcam.errors import InputError
from litcam.vit.context import autograd_anywhere
from litcam.vit.threads import in_this_thread

_DECLARED = "litcam_regression"  # the attribute that says so; it survives copies and pickles

Model = TypeVar("Model", bound=Callable[..., Any])


def declare_regression(net: Model) -> Model:
    """Say that a model of one output is a regression: its output is explained and followed as it is, not as a class.

    Copies and pickles of the model know it, its state_dict does not. It is found in a module that holds the model, but
    not in a function that calls it: declare that too where metrics are given the function.

    Args:
        net: a model, a part of what is explained, or a function that gives the outputs.

    Returns:
        The same model.

    Raises:
        InputError: for what keeps no attribute, such as a method.
    """
    try:
        setattr(net, _DECLARED, True)
    except AttributeError as error:
        raise InputError(
            f"A {type(net).__name__} cannot be declared a regression; declare the module that gives the outputs."
        ) from error
    return net


def is_regression(net: Any) -> bool:
    """Whether a model, a part of it, or the model whose method it is was declared a regression.

    Of a trace ask the root of its ViT: what was recorded may be a part of the model that was declared.
    """
    owner = getattr(net, "__self__", net)  # of a bound method
    parts = owner.modules() if isinstance(owner, nn.Module) else (net, owner)  # a compiled module has the plain one
    return any(getattr(part, _DECLARED, False) for part in parts)


def check_classifies(net: Any, what: str) -> None:
    """Raise InputError if a model was declared a regression, for what can only be said of classes."""
    if is_regression(net):
        raise InputError(
            f"{what} needs classes, but {type(net).__name__} was declared a regression, which has none; explain it by "
            "litcam.create_explainer, and follow its value by litcam.metrics.Perturbation."
        )


def num_targets(logits: Tensor, regression: bool) -> int:
    """How many targets logits [B, C] have: C, of one output the two classes, of a regression one.

    Raises:
        InputError: if a regression has several outputs.
    """
    return class_scores(logits[:0], regression).shape[1]  # of no image: only their number is asked


def class_scores(logits: Tensor, regression: bool, multi_label: bool = False) -> Tensor:
    """The scores of all targets, whose gradients explain them: the logits; of one output z (−z, z); of a regression z.

    Args:
        logits: [B, C].
        regression: whether the model was declared one, see :func:`is_regression`.
        multi_label: whether the classes do not exclude each other, so that each has its own output.

    Returns:
        [B, targets], in the graph of the logits, under no_grad too. Probabilities are made by :func:`probabilities`,
        not of these.

    Raises:
        InputError: if a regression has several outputs, or a multi-label model one.
    """
    outputs = logits.shape[1]
    if regression and outputs != 1:
        raise InputError(f"The model was declared a regression, but has {outputs} outputs; it has to have one.")
    if multi_label and outputs == 1:
        raise InputError(
            "multi_label is for a model of several outputs, but this one has one: leave it out, and the output counts "
            "as classes 0 and 1 by its sigmoid, or as a value if litcam.declare_regression declares it."
        )
    if outputs > 1 or regression:
        return logits
    with _in_its_graph(logits):
        return torch.cat([-logits, logits], 1)


def probabilities(logits: Tensor, regression: bool, multi_label: bool = False) -> Tensor:
    """The probabilities of all targets: the softmax; of one output z (sigmoid(−z), sigmoid(z)); of a regression z.

    Args:
        logits: [B, C].
        regression: whether the model was declared one.
        multi_label: whether the classes do not exclude each other: then the sigmoid of every logit.

    Returns:
        [B, targets], of the logits' dtype and in their graph, under no_grad too.

    Raises:
        InputError: if a regression has several outputs, or a multi-label model one.
    """
    scores = class_scores(logits, regression, multi_label)
    if regression:
        return scores
    with _in_its_graph(logits):
        return scores.sigmoid() if multi_label or logits.shape[1] == 1 else scores.softmax(1)


def _in_its_graph(logits: Tensor) -> AbstractContextManager[None]:
    """What is made of logits within can be differentiated if they can."""
    return autograd_anywhere(logits.device.type) if logits.requires_grad else nullcontext()


def predicted_classes(logits: Tensor, regression: bool) -> Tensor:
    """The target of the highest score: int64 [B]; of one output z class 1 where z > 0, of a regression always 0.

    Raises:
        InputError: if a regression has several outputs.
    """
    return class_scores(logits, regression).argmax(1)


def check_logits(logits: Tensor, whose: str, ids: Sequence[object] = ()) -> None:
    """Raise InputError if logits [B, C] are NaN or infinite.

    Args:
        logits: of a forward.
        whose: which images those are, for the error.
        ids: their names, if they have any.
    """
    finite = logits.isfinite().all(1)
    if bool(finite.all()):
        return
    bad = (~finite).nonzero()[:, 0].tolist()
    first = f", the first of them {ids[bad[0]]!r}," if ids else ""
    raise InputError(
        f"The logits of {len(bad)} of {len(logits)} {whose}{first} are NaN or infinite: the training has diverged or "
        "numbers overflow; take an earlier checkpoint, or train with a lower lr, gradient_clip_val or bf16-mixed."
    )


@contextmanager
def finite_logits(net: nn.Module) -> Iterator[None]:
    """Raise InputError at the end if a forward of a net gave logits that are NaN or infinite: of masked images, say."""
    finite: list[Tensor] = []

    def look(net: nn.Module, images: Any, logits: Any) -> None:
        if isinstance(logits, Tensor):
            finite.append(logits.detach().isfinite().all())

    handle = net.register_forward_hook(in_this_thread(look))
    try:
        yield
    finally:
        handle.remove()
    if finite and not bool(torch.stack(finite).all()):  # asked once, for the device has to be waited for
        raise InputError(
            "The model's logits of images with parts removed or replaced are NaN or infinite, so that no number can be "
            "made of them: leave out the metric that does so, or take a model that can see such images."
        )
