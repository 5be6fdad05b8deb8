"""A forward that would run again in the backward pass runs once, where litcam says so and nowhere else."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.distributed._composable import checkpoint as composable
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import CheckpointFunction, checkpoint, checkpoint_sequential

from conftest import SMALL, make_images, make_net
from litcam.explainers import create_explainer
from litcam.vit.checkpointing import without_checkpointing
from litcam.vit.context import eager, evaluating

Layers = Callable[["Net", Tensor], Tensor]


class Net(nn.Module):
    """Two layers, run by a function that checkpoints them in one of many ways; counts the first one's forwards."""

    def __init__(self, run: Layers) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        self.run = run
        self.forwards = 0
        self.layers[0].register_forward_pre_hook(self.count)

    def count(self, *_: Any) -> None:
        self.forwards += 1

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def stop_early_off(net: Net, x: Tensor) -> Tensor:
    with torch_checkpoint.set_checkpoint_early_stop(False):
        return checkpoint(net.layers, x, use_reentrant=False)


def selective(net: Net, x: Tensor) -> Tensor:
    policy = lambda context, function, *args, **kwargs: torch_checkpoint.CheckpointPolicy.PREFER_RECOMPUTE  # noqa: E731
    contexts = lambda: torch_checkpoint.create_selective_checkpoint_contexts(policy)  # noqa: E731
    return checkpoint(net.layers, x, use_reentrant=False, context_fn=contexts, early_stop=False)


def wrapped(kind: CheckpointImpl) -> Layers:
    return lambda net, x: checkpoint_wrapper(net.layers, kind)(input=x)


def nested(net: Net, x: Tensor) -> Tensor:
    inner = lambda y: checkpoint(net.layers, y, use_reentrant=False)  # noqa: E731
    return checkpoint(inner, x, use_reentrant=False)


def of_a_module(net: Net, x: Tensor) -> Tensor:
    layers = nn.Sequential(net.layers)
    composable(layers)
    return layers(x)


WAYS: dict[str, Layers] = {
    "reentrant": lambda net, x: checkpoint(net.layers, x, use_reentrant=True),
    "not reentrant": lambda net, x: checkpoint(net.layers, x, use_reentrant=False),
    "keywords": lambda net, x: checkpoint(net.layers, use_reentrant=False, input=x),
    "looked up late": lambda net, x: torch.utils.checkpoint.checkpoint(net.layers, x, use_reentrant=True),
    "decorator": lambda net, x: checkpoint(use_reentrant=False, preserve_rng_state=False)(net.layers)(x),
    "no early stop": stop_early_off,
    "selective": selective,
    "nested": nested,
    "sequential": lambda net, x: checkpoint_sequential(net.layers, 2, x, use_reentrant=False),
    "reentrant sequential": lambda net, x: checkpoint_sequential(net.layers, 2, x, use_reentrant=True),
    "function": lambda net, x: CheckpointFunction.apply(net.layers, True, x),
    "wrapper": wrapped(CheckpointImpl.NO_REENTRANT),
    "reentrant wrapper": wrapped(CheckpointImpl.REENTRANT),
    "composable": of_a_module,
}


def step(net: Net, backward: bool = False) -> Tensor:
    """The gradient in the input."""
    x = torch.linspace(-1, 1, 8).reshape(2, 4).requires_grad_()
    output = net(x).square().sum()
    if not backward:
        return torch.autograd.grad(output, x)[0]
    output.backward()
    assert x.grad is not None
    return x.grad


@pytest.mark.parametrize("way", list(WAYS))
def test_the_gradient_is_right_and_nothing_runs_again(way: str) -> None:
    """Even torch.autograd.grad, which the reentrant kind refuses."""
    expected = step(Net(lambda net, x: net.layers(x)))
    net = Net(WAYS[way])
    with without_checkpointing():
        torch.testing.assert_close(step(net), expected, rtol=0, atol=0)
    assert net.forwards == 1
    assert net.layers[0].weight.requires_grad
    torch.testing.assert_close(step(net, backward=True), expected)
    assert net.forwards > 2, "without the context this way runs the layers again: the test would prove nothing"


@pytest.mark.parametrize("reentrant", [True, False])
def test_other_threads_go_on_checkpointing(reentrant: bool) -> None:
    here, there = (Net(WAYS["reentrant" if reentrant else "not reentrant"]) for _ in range(2))
    with ThreadPoolExecutor(1) as pool, without_checkpointing():
        pool.submit(step, there, True).result()
        step(here)
    assert (here.forwards, there.forwards) == (1, 2)


def test_threads_that_overlap_leave_torch_as_it_was() -> None:
    """The one that came first leaves first: a plain put-back would keep the stand-ins, or the compiler's stance."""
    from torch._dynamo import eval_frame

    before = (vars(torch_checkpoint).copy(), vars(CheckpointFunction).copy(), eval_frame._stance)

    @contextmanager
    def both() -> Iterator[None]:
        with without_checkpointing(), eager():
            yield

    first, second = both(), both()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        one.submit(first.__exit__, None, None, None).result()
        assert eval_frame._stance.stance == "force_eager"
        net = Net(WAYS["reentrant"])
        other.submit(step, net).result()
        other.submit(second.__exit__, None, None, None).result()
    assert net.forwards == 1
    assert (vars(torch_checkpoint), vars(CheckpointFunction), eval_frame._stance) == before


def test_it_nests_and_ends_on_an_error() -> None:
    before = (vars(torch_checkpoint).copy(), vars(CheckpointFunction).copy())
    net = Net(WAYS["not reentrant"])

    def fail(x: Tensor) -> Tensor:
        raise RuntimeError("in the layers")

    with without_checkpointing():
        for use_reentrant in (True, False):
            with pytest.raises(RuntimeError, match="in the layers"), without_checkpointing():
                checkpoint(fail, torch.ones(1, requires_grad=True), use_reentrant=use_reentrant)
        step(net)
        assert net.forwards == 1  # still off
    assert (vars(torch_checkpoint), vars(CheckpointFunction)) == before
    step(net)
    assert net.forwards == 3


def test_the_users_contexts_still_hold() -> None:
    """They may change the numbers."""
    x = torch.ones(2, 4, requires_grad=True)
    lower = lambda: (torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", torch.bfloat16))  # noqa: E731
    net = Net(lambda net, x: checkpoint(net.layers, x, use_reentrant=False, context_fn=lower))
    with without_checkpointing():
        assert net(x).dtype == torch.bfloat16


def test_functions_of_the_users_own_are_left_alone() -> None:
    class Doubled(CheckpointFunction):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

    with without_checkpointing():
        assert Doubled.apply(torch.ones(1)) == 2


def test_without_a_hook_of_that_name_torch_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch_checkpoint, "_checkpoint_hook")
    with without_checkpointing():
        assert not hasattr(torch_checkpoint, "_checkpoint_hook")
    assert not hasattr(torch_checkpoint, "_checkpoint_hook")


def test_evaluating_runs_the_blocks_of_a_vit_once() -> None:
    """timm's own switch, which stays on."""
    net = timm.create_model("vit_tiny_patch16_224", **SMALL).train()
    net.set_grad_checkpointing(True)
    seen: list[bool] = []
    net.blocks[1].register_forward_pre_hook(lambda block, arguments: seen.append(block.training))
    images = torch.randn(1, 3, 64, 64, requires_grad=True)
    with evaluating(net):
        torch.autograd.grad(net(images).sum(), images)
    assert seen == [False]
    assert net.training
    assert net.grad_checkpointing is True
    net(images).sum().backward()
    assert seen == [False, True, True]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("name", ["generic_attention", "relevance", "saw", "tokentm"])
def test_a_net_that_checkpoints_its_blocks_is_explained_as_the_one_that_does_not(name: str, reentrant: bool) -> None:
    """Without the switch these methods give wrong maps of the reentrant kind, and raw errors of the other."""
    net = make_net("class_token")
    images = make_images(net)
    expected = create_explainer(name, net)(images).heatmaps
    for block in net.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=reentrant)
    torch.testing.assert_close(create_explainer(name, net)(images).heatmaps, expected, rtol=0, atol=0)
