"""The readout: which tokens of the last block the logits are made of, and with what weight; observed, not guessed.

The tail of the model is run on the recorded tokens and on two sets of made-up ones. The recorded ones have to give the
recorded logits, though the image is a foreign one: nothing else reaches them then. The made-up tokens are all alike, so
that everything that happens to each token alone, such as a norm, is the same for all; then the Jacobian of the logits
at token n is w_n·J for the tokens of one weighted mean, with a J of its own for each mean that the head reads. A second
set that differs a little from token to token must show the same: a maximum would not.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from litcam.errors import UnsupportedModelError
from litcam.vit.context import autograd_anywhere, evaluating
from litcam.vit.hooks import quiet_hooks
from litcam.vit.model import ViT
from litcam.vit.tail import run_tail

Agrees = Callable[[Tensor], bool]

_MOST_FEATURES = 8
_NOTHING = 1e-5  # of the largest Jacobian
_ALIKE = 1e-4  # 1 − cosine of two Jacobians
_JITTER = 1e-3  # of the made-up tokens
_NEARLY = 2e-2  # what the jitter may change
_NOTICED = 0.05  # of the largest change of the logits


@dataclass(frozen=True)
class Readout:
    """The tokens that the logits read.

    The head reads one or several features, each a weighted mean of tokens: the class token, the mean of all patch
    tokens, both of them. Every feature counts alike.

    Attributes:
        features: [F, N] float32 on the CPU, the weights of N tokens in each of F features; rows sum to one.
    """

    features: Tensor

    @cached_property
    def weights(self) -> Tensor:
        """[N], the weight of each token; they sum to one."""
        return self.features.mean(0)

    @cached_property
    def tokens(self) -> Tensor:
        """Indices of the tokens that are read, ascending: [R]."""
        return self.weights.nonzero()[:, 0]

    @property
    def rows(self) -> slice | Tensor:
        """The same as an index of query rows: a slice, where they lie side by side."""
        first, last = int(self.tokens[0]), int(self.tokens[-1])
        return slice(first, last + 1) if last + 1 - first == len(self.tokens) else self.tokens

    def reads_only_first(self, count: int) -> bool:
        """Whether no token but the first ``count`` is read."""
        return int(self.tokens[-1]) < count

    def of_rows(self, like: Tensor) -> Tensor:
        """The weights of the tokens that are read, [R]: on the device, and in the dtype, of another tensor."""
        return self.weights[self.tokens].to(like)

    def row(self, tokens: Tensor) -> Tensor:
        """The weights of all tokens, for token values [..., N] and of their shape."""
        return self.weights.to(tokens).expand(tokens.shape).clone()


_MORE = "its logits are made of more than the tokens that leave its last block"

_known: "WeakKeyDictionary[nn.Module, dict[int, Readout]]" = WeakKeyDictionary()


def known_readout(module: nn.Module, count: int | None = None) -> Readout | None:
    """What was last observed of a module, with so many tokens or any number; None if nothing was."""
    seen = _known.get(module, {})
    return seen.get(count) if count is not None else next(reversed(seen.values()), None)


def remember_readout(module: nn.Module, readout: Readout) -> None:
    """Keep what was observed, as the latest of a module."""
    seen = _known.setdefault(module, {})
    seen.pop(len(readout.weights), None)
    seen[len(readout.weights)] = readout


def may_replay(vit: ViT) -> bool:
    """Whether the logits read prefix tokens alone, as far as is known; a replay proves it."""
    readout = known_readout(vit.root)
    return vit.num_prefix_tokens > 0 and (readout is None or readout.reads_only_first(vit.num_prefix_tokens))


def look_first(vit: ViT, images: Tensor) -> None:
    """Observe the readout of a module of which nothing is known; methods that can do without it go on if it fails."""
    if known_readout(vit.root) is None:
        with suppress(UnsupportedModelError), evaluating(vit.root), quiet_hooks(vit.root):
            observe_readout(vit, vit.root, images)


def check_tail(vit: ViT, module: nn.Module, images: Tensor, tokens: Tensor, agrees: Agrees) -> None:
    """Raise UnsupportedModelError if logits [B, C] are made of more than the tokens [B, N, D] that left the last block.

    With another image in place of those that the module got, and no blocks, they have to come out the same.
    """
    found = run_tail(vit, module, images, lambda entered: tokens)
    if found is None or not agrees(found):
        raise _refusal(module, _MORE)


def observe_readout(
    vit: ViT, module: nn.Module, images: Tensor, tokens: Tensor | None = None, agrees: Agrees | None = None
) -> Readout:
    """The readout of a module.

    Args:
        vit: the model.
        module: what is called.
        images: [B, 3, H, W], as the module got them.
        tokens: [B, N, D], what left the last block; None where nothing has been recorded.
        agrees: says whether logits [B, C] are those that they gave.

    Raises:
        UnsupportedModelError: if the logits are made of something else, or of the tokens in a way that no weights tell.
    """
    made: list[Tensor] = []

    def answer(entered: Tensor) -> Tensor:
        like = entered[:0] if tokens is None else tokens.detach().clone()
        made[:] = [_made_up(entered.shape[1], like).requires_grad_()]
        return torch.cat([like, made[0]])

    with autograd_anywhere(images.device.type):
        found = run_tail(vit, module, images, answer)
        if found is None or not made:
            raise _refusal(module, _MORE)
        if tokens is not None and agrees is not None and not agrees(found[:-2]):
            # Once more by themselves: quantised layers share a scale over all that they get together.
            check_tail(vit, module, images, tokens, agrees)
        jacobians = _jacobians(found[-2:], made[0])
        if jacobians is not None and not bool(jacobians.any()):
            with _Unzeroed():
                found = run_tail(vit, module, images, answer)
            jacobians = None if found is None else _jacobians(found[-2:], made[0])
    readout = _by_values(vit, module, images, tokens) if jacobians is None else _features(module, jacobians)
    remember_readout(module, readout)
    return readout


def _made_up(count: int, like: Tensor) -> Tensor:
    """Tokens [2, N, D] that are all alike, and that are nearly so."""
    generator = torch.Generator().manual_seed(0)
    width = like.shape[-1]
    scale = float(like[:1].float().std()) if len(like) else 1.0
    token = torch.randn(width, generator=generator).expand(1, count, width)
    nearly = token + _JITTER * torch.randn(1, count, width, generator=generator)
    return (torch.cat([token, nearly]) * (scale or 1.0)).to(like)


def _jacobians(logits: Tensor, tokens: Tensor) -> Tensor | None:
    """Gradients [2, N, D] of a random function of logits [2, C] at tokens [2, N, D]; None if there are none."""
    if not logits.requires_grad:
        return None
    direction = torch.randn(logits.shape[1], generator=torch.Generator().manual_seed(1)).to(logits)
    (gradient,) = torch.autograd.grad((logits * direction).sum(), tokens, allow_unused=True)
    return None if gradient is None else gradient.double()


def _features(module: nn.Module, jacobians: Tensor) -> Readout:
    """The weighted means that explain Jacobians [2, N, D] of tokens that are alike, and nearly so."""
    if not bool(jacobians.isfinite().all()):
        raise _refusal(module, "the gradient of its logits at its tokens is not finite")
    if not bool(jacobians[0].any()):
        raise _refusal(module, "its logits depend on no token of its last block")
    alike, nearly = jacobians / jacobians[0].abs().max()
    lengths = alike.norm(dim=-1)
    left = lengths > _NOTHING * lengths.max()
    features: list[Tensor] = []
    while bool(left.any()):
        if len(features) == _MOST_FEATURES:
            raise _refusal(module, f"its head reads its tokens in more than {_MOST_FEATURES} different ways")
        first = int((lengths * left).argmax())
        weights = _weights(alike, first)
        same = left & (F.cosine_similarity(alike, alike[first], dim=-1) > 1 - _ALIKE)
        expected = torch.where(same, _weights(nearly, first), weights)
        turned = F.cosine_similarity(nearly, nearly[first], dim=-1) < 1 - _NEARLY
        if bool((same & turned).any()) or bool(((expected - weights).abs() > _NEARLY * weights.abs())[same].any()):
            raise _refusal(module, "its head does not read a weighted mean of tokens")
        features.append(_cleaned(torch.where(same, weights, torch.zeros_like(weights))))
        left = left & ~same
    features.sort(key=lambda weights: int(weights.argmax()))  # by the first of their tokens, where those weigh alike
    return Readout(torch.stack(features).float().cpu())


def _weights(jacobians: Tensor, first: int) -> Tensor:
    """Of tokens [N] in a mean, next to the weight of the first."""
    return jacobians @ jacobians[first] / jacobians[first].square().sum()


def _cleaned(weights: Tensor) -> Tensor:
    """Weights that sum to one; those that rounding alone tells apart are equal."""
    read = weights[weights > 0]
    if float(read.max() - read.min()) < _NEARLY * 1e-1 * float(read.max()):
        weights = (weights > 0).to(weights)
    return weights / weights.sum()


class _Unzeroed(TorchFunctionMode):
    """Linear layers whose weights are all zero, as those of some new heads, get others."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.linear:
            return _linear_unzeroed(*args, **kwargs)
        return function(*args, **kwargs)


def _linear_unzeroed(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not bool(weight.any()):
        weight = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)).to(weight)
    return F.linear(input, weight, bias)


def _by_values(vit: ViT, module: nn.Module, images: Tensor, tokens: Tensor | None) -> Readout:
    """The readout of a tail that has no gradient: one prefix token, or patches that may change places.

    Raises:
        UnsupportedModelError: for any other.
    """
    prefix, count = vit.num_prefix_tokens, 0

    def answer(entered: Tensor) -> Tensor:
        nonlocal count
        count = entered.shape[1]
        return _changed_versions(entered if tokens is None else tokens[:1], prefix)

    with torch.no_grad():
        logits = run_tail(vit, module, images, answer)
    if logits is None:
        raise _refusal(module, _MORE)
    change = (logits[1:] - logits[:1]).abs().amax(1).double()
    read = (change > _NOTICED * change.max()).tolist()
    weights = torch.zeros(1, count)
    if sum(read[:prefix]) == 1 and not any(read[prefix:]):
        weights[0, read.index(True)] = 1
    elif not any(read[:prefix]) and read[prefix:] == [True, False]:
        weights[0, prefix:] = 1 / (count - prefix)
    else:
        raise _refusal(module, "its head has no gradient that would tell how it weighs the tokens")
    return Readout(weights)


def _changed_versions(like: Tensor, prefix: int) -> Tensor:
    """Random tokens; with each prefix token changed in turn; with all patches changed; with patches in other places."""
    generator = torch.Generator().manual_seed(3)
    base, other = (torch.randn(like.shape, generator=generator).to(like) for _ in range(2))
    versions = [base]
    for place in range(prefix):
        versions.append(base.clone())
        versions[-1][:, place] = other[:, place]
    for patches in (other[:, prefix:], base[:, prefix:].roll(1, 1)):
        versions.append(torch.cat([base[:, :prefix], patches], 1))
    return torch.cat(versions)


def _refusal(module: nn.Module, reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"{type(module).__name__}: {reason}, so that it cannot be told which tokens its logits read. Supported "
        "are heads on prefix tokens, on a weighted mean of tokens, on an attention pool, or on several of these; "
        "rise and saliency take any head."
    )
