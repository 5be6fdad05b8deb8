"""Several threads, one net: every map is the one that it would be alone, and so are the logits of plain forwards."""

import copy
import gc
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from conftest import make_images, make_net
from litcam.explainers import create_explainer
from litcam.explainers.base import Explainer
from litcam.vit import threads
from litcam.vit.context import evaluating, frozen
from litcam.vit.threads import SharedFlag, in_this_thread, one_at_a_time

METHODS = ["agcam", "raw_attention", "generic_attention", "relevance", "reciprocam", "saliency"]
THREADS = 4
CALLS = 3  # of each thread

Call = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def _switch_often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads that take turns after every few steps meet each other in all places."""
    import sys

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


class Holder(nn.Module):
    """Another module that holds the same Vision Transformer."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.net(images)
        return logits


def heatmaps(explainer: Explainer) -> Call:
    return lambda images: explainer(images, torch.arange(len(images)) % 7).heatmaps


def run_at_once(calls: list[Call], images: list[Tensor]) -> None:
    """Every thread makes every call, each starting with another one; each result is as it is without threads."""
    expected = [[call(x) for x in images] for call in calls]
    start = threading.Barrier(THREADS)

    def work(thread: int) -> None:
        start.wait()
        for turn in range(CALLS):
            for position in range(len(calls)):
                which, x = (position + thread) % len(calls), (thread + turn) % len(images)
                torch.testing.assert_close(calls[which](images[x]), expected[which][x])

    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, thread) for thread in range(THREADS)]:
            done.result()


def make_batches(net: nn.Module) -> list[Tensor]:
    return [make_images(net, count=1 + seed % 2, seed=seed) for seed in range(4)]


def is_untouched(net: nn.Module) -> bool:
    """No hook is left, and every flag is as it was made."""
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    return not hooks and not net.training and all(parameter.requires_grad for parameter in net.parameters())


def test_several_methods_in_four_threads_on_one_net() -> None:
    """Each explainer shared by the threads."""
    net = make_net("class_token")
    run_at_once([heatmaps(create_explainer(name, net)) for name in METHODS], make_batches(net))
    assert is_untouched(net)


def test_explainers_made_in_each_call_and_of_two_modules_that_share_the_net() -> None:
    net = make_net("registers")
    holder = Holder(net).eval()
    roots = [net, holder, net, holder, net, holder]
    calls = [
        lambda x, name=name, root=root: heatmaps(create_explainer(name, root))(x)
        for name, root in zip(METHODS, roots, strict=True)
    ]
    run_at_once(calls, make_batches(net))
    assert is_untouched(net)


def test_plain_forwards_at_the_same_time_give_the_right_logits_and_leave_the_maps_right() -> None:
    """As the prediction of a web demo does beside its explanations, with gradients and without."""
    net = make_net("class_token")

    def predict(images: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = net(images)
        return logits

    calls = [call for name in METHODS for call in (heatmaps(create_explainer(name, net)), predict, net)]
    run_at_once(calls, make_batches(net))
    assert is_untouched(net)


def enter(net: nn.Module) -> None:
    with one_at_a_time(net):
        pass


def test_nets_do_not_wait_for_each_other_and_a_net_waits_for_itself() -> None:
    net, other = nn.Linear(1, 1), nn.Linear(1, 1)
    entered = threading.Event()

    def wait(net: nn.Module) -> None:
        enter(net)
        entered.set()

    with ThreadPoolExecutor(2) as pool:
        with one_at_a_time(net), one_at_a_time(net):  # the same thread may enter again
            pool.submit(enter, other).result(timeout=60)
            waiting = pool.submit(wait, net)
            assert not entered.wait(0.05)
        waiting.result(timeout=60)
    assert entered.is_set()


def test_the_lock_is_left_after_an_error_and_goes_with_the_net() -> None:
    """No copy and no file of the net knows of it."""
    net = nn.Linear(1, 1)
    with pytest.raises(ZeroDivisionError), one_at_a_time(net):
        raise ZeroDivisionError
    with ThreadPoolExecutor(1) as pool, one_at_a_time(net):
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
            assert vars(other).keys() == vars(nn.Linear(1, 1)).keys()
            pool.submit(enter, other).result(timeout=60)
    before = len(threads._locks)
    del net
    gc.collect()
    assert len(threads._locks) < before


def test_two_nets_are_explained_while_each_is_held_up_by_the_other() -> None:
    """Each forward waits until the other net's has begun: one lock for all would never end."""
    nets = [make_net("class_token", seed) for seed in range(2)]
    images = make_images(nets[0])
    expected = [create_explainer("agcam", net)(images).heatmaps for net in nets]
    meet = threading.Barrier(2, timeout=60)
    waited = threading.local()

    def wait(*_: Any) -> None:
        if not hasattr(waited, "once"):
            waited.once = meet.wait()

    for net in nets:
        net.blocks[0].register_forward_pre_hook(wait)
    with ThreadPoolExecutor(2) as pool:
        maps = list(pool.map(lambda net: create_explainer("agcam", net)(images).heatmaps, nets))
    for actual, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, wanted)


def test_methods_that_draw_at_random_do_so_as_alone_on_two_nets_at_once() -> None:
    """captum draws from the generators of the whole process."""
    nets = [make_net("class_token", seed) for seed in range(2)]
    explainers = [create_explainer("captum:GradientShap", net, n_samples=3) for net in nets]
    run_at_once([heatmaps(explainer) for explainer in explainers], make_batches(nets[0]))


@pytest.mark.parametrize("context", [evaluating, frozen])
def test_threads_that_overlap_leave_flags_as_they_were(context: Callable[[nn.Module], Any]) -> None:
    """The one that came first leaves first: the other must not lose what it needs, nor the module its flags."""
    net = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2)).train()
    net[1].eval()
    net[2].weight.requires_grad = False

    def flags() -> list[bool]:
        return [one.training for one in net.modules()] + [one.requires_grad for one in net.parameters()]

    def is_off() -> bool:
        if context is evaluating:
            return not any(one.training for one in net.modules())
        return not any(one.requires_grad for one in net.parameters())

    before = flags()
    first, second = context(net), context(net)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        one.submit(first.__exit__, None, None, None).result()
        assert is_off()
        with context(net[0]):
            assert is_off()
        other.submit(second.__exit__, None, None, None).result()
    assert flags() == before
    with pytest.raises(ZeroDivisionError), context(net):
        raise ZeroDivisionError
    assert flags() == before


def test_a_flag_that_was_off_stays_off_when_others_leave() -> None:
    one = nn.Linear(1, 1).eval()
    with SharedFlag("training").off([one]):
        pass
    assert not one.training


def test_a_hook_of_litcams_acts_in_its_thread_alone() -> None:
    net = nn.Linear(1, 1)
    net.register_forward_hook(in_this_thread(lambda module, x, output: output * 0))
    net.register_forward_pre_hook(in_this_thread(lambda module, x, keywords: (x, {})), with_kwargs=True)
    x = torch.ones(1, 1)
    assert net(x) == 0
    with ThreadPoolExecutor(1) as pool:
        for other in (net, copy.deepcopy(net)):
            assert pool.submit(other, x).result() == x * net.weight + net.bias
        assert copy.deepcopy(net)(x) == x * net.weight + net.bias
