"""The user's hooks fire once per forward of theirs, litcam's forwards leave them quiet, and nothing stays behind."""

import copy
import pickle
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import prune
from torch.utils.hooks import RemovableHandle

from litcam.vit.hooks import quiet_hooks, watching_hooks, without_backward_hooks
from litcam.vit.threads import in_this_thread

Act = Callable[[Any], Any]


class Seen(list[Any]):
    """A hook of the user's that looks and changes nothing: the shapes that it was given."""

    def __call__(self, module: nn.Module, *given: Any) -> None:
        value = given[-1][0] if isinstance(given[-1], tuple) else given[-1]
        self.append(tuple(value.shape))


class Asked(nn.Module):
    """Gives what a function makes of its arguments, in whatever container."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *arguments: Any, **keywords: Any) -> Any:
        return self.function(*arguments, **keywords)


def make_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2))


def hook_dicts(root: nn.Module) -> list[Any]:
    """All that registering a hook writes into, in order."""
    of_modules = [value for module in root.modules() for name, value in vars(module).items() if "hooks" in name]
    of_all = [value for name, value in vars(torch_module).items() if name.startswith("_global") and "hooks" in name]
    return [list(hooks.items()) for hooks in [*of_modules, *of_all] if isinstance(hooks, dict)]


def double(x: Tensor) -> None:
    x.mul_(2)


def write_data(x: Tensor) -> None:
    x.data[0] += 1


def write_numpy(x: Tensor) -> None:
    x.detach().numpy()[0] += 1


def write_the_same(x: Tensor) -> None:
    x.data.mul_(1)


def ask_for_its_gradient(x: Tensor) -> None:
    if x.requires_grad:
        x.retain_grad()
        x.register_hook(lambda gradient: None)


CHANGING: list[Act] = [lambda x: x + 1, torch.clone, Tensor.detach, double, write_data, write_numpy]
LOOKING: list[Act] = [lambda x: None, lambda x: x, write_the_same, ask_for_its_gradient]


@pytest.mark.parametrize(("act", "changes"), [*((act, True) for act in CHANGING), *((act, False) for act in LOOKING)])
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_hook_that_changes_something_is_told_from_one_that_looks(
    act: Act, changes: bool, mode: Callable[[], Any]
) -> None:
    """Hooks of every kind, in every mode of autograd; each fires once, in its turn."""
    calls: list[str] = []

    def acted(name: str, value: Any) -> Any:
        calls.append(name)
        return act(value)

    def pre(module: nn.Module, arguments: Any) -> Any:
        return acted("pre", arguments[0])

    def pre_keywords(module: nn.Module, arguments: Any, keywords: dict[str, Any]) -> Any:
        result = acted("pre keywords", keywords["y"])
        return None if result is None else (arguments, {"y": result})

    module = Asked(lambda x, y: (x + y) * 1)
    handles = [
        module.register_forward_pre_hook(pre_keywords, with_kwargs=True),
        module.register_forward_pre_hook(pre, prepend=True),
        module.register_forward_hook(lambda m, x, out: acted("post", out)),
        module.register_forward_hook(lambda m, x, y, out: acted("post keywords", out), with_kwargs=True),
        module.register_forward_hook(lambda m, x, out: acted("always", out), always_call=True),
    ]
    before = hook_dicts(module)
    with mode(), watching_hooks(module) as watched:
        x, y = (torch.ones(2, 3, requires_grad=True) * 1 for _ in range(2))
        module(x, y=y)
    assert calls == ["pre", "pre keywords", "post", "post keywords", "always"]
    assert {hook.id for hook in watched.changing} == ({handle.id for handle in handles} if changes else set())
    assert hook_dicts(module) == before


@dataclass
class Output:
    logits: Tensor


def replace_logits(output: Output) -> None:
    output.logits = output.logits + 1


def cut(output: Tensor) -> None:
    output.detach_()


def transpose(output: Tensor) -> None:
    output.t_()


# What the module makes of a tensor, what the hook does, and whether that changes something.
OUTPUTS: dict[str, tuple[Act, Act, bool]] = {
    "a list's element": (lambda x: [x], lambda output: output.append(1), True),
    "a dict's value": (lambda x: {"x": x}, lambda output: output.update(x=output["x"] + 1), True),
    "a dict's key": (lambda x: OrderedDict(x=x), lambda output: output.update(y=output.pop("x")), True),
    "deep in it": (lambda x: {"x": [(x, 1)]}, lambda output: double(output["x"][0][0]), True),
    "a field": (Output, replace_logits, True),
    "a tensor in a field": (Output, lambda output: double(output.logits), True),
    "another container": (lambda x: x, lambda output: (output,), True),
    "another container, unpacked": (lambda x: (x,), lambda output: output[0], True),
    "the graph": (lambda x: x, cut, True),
    "the shape": (lambda x: x, transpose, True),
    "nothing": (lambda x: {"x": [(x, 1)]}, lambda output: {"x": [tuple(output["x"][0])]}, False),
    "nothing of NaN": (lambda x: x * float("nan"), lambda output: None, False),
    "nothing of no tensor": (str, lambda output: None, False),
    "nothing of a sparse tensor": (lambda x: x.detach().to_sparse(), lambda output: output, False),
    "nothing of a meta tensor": (lambda x: x.detach().to("meta"), lambda output: None, False),
}


@pytest.mark.parametrize("kind", list(OUTPUTS))
def test_changes_are_seen_in_every_container(kind: str) -> None:
    give, act, changes = OUTPUTS[kind]
    module = Asked(lambda x: give(x * 1))
    module.register_forward_hook(lambda module, x, output: act(output))
    with watching_hooks(module) as watched:
        module(torch.ones(2, 3, requires_grad=True))
    assert bool(watched.changing) is changes


def test_a_pre_hook_that_writes_into_the_keywords_changes_something() -> None:
    module = Asked(lambda x: x)
    module.register_forward_pre_hook(lambda m, _, keywords: keywords.update(x=keywords["x"] + 1), with_kwargs=True)
    with watching_hooks(module) as watched:
        assert module(x=torch.zeros(1)) == 1
    assert len(watched.changing) == 1


def test_an_error_of_a_hook_is_the_users_and_leaves_nothing_behind() -> None:
    layers = make_layers()
    layers[1].register_forward_hook(lambda *_: 1 / 0)
    before = hook_dicts(layers)
    with pytest.raises(ZeroDivisionError), watching_hooks(layers):
        layers(torch.ones(1, 3))
    assert hook_dicts(layers) == before
    with pytest.raises(RuntimeError, match="shapes"), quiet_hooks(layers):
        layers(torch.ones(1, 4))
    assert hook_dicts(layers) == before
    with quiet_hooks(layers):
        layers(torch.ones(1, 3))


def test_quiet_hooks_fire_not_at_all_and_changing_ones_do() -> None:
    """Those of modules and those of all modules; on a module that is there twice, too, each time that it runs."""
    layers = make_layers()
    layers.append(layers[1])
    looking, of_all = Seen(), Seen()
    layers[1].register_forward_hook(looking)
    layers[2].register_forward_pre_hook(looking)
    layers[1].register_forward_hook(lambda module, x, output: output + 1, prepend=True)
    with ExitStack() as hooks:
        hooks.callback(torch_module.register_module_forward_hook(of_all).remove)
        hooks.callback(torch_module.register_module_forward_pre_hook(of_all).remove)
        hooks.callback(torch_module.register_module_forward_hook(lambda module, x, output: output * 3).remove)
        before = hook_dicts(layers)
        with watching_hooks(layers) as watched:
            expected = layers(torch.ones(4, 3))
        assert looking == [(4, 3), (4, 3), (4, 2)]
        assert len(of_all) == 10
        looking.clear()
        of_all.clear()
        with quiet_hooks(layers, watched.changing):
            actual = layers(torch.ones(1, 3))
        torch.testing.assert_close(actual, expected[:1])
        assert not looking
        assert not of_all
        assert hook_dicts(layers) == before
    with quiet_hooks(layers):
        torch.testing.assert_close(layers(torch.ones(1, 3)), make_layers()(torch.ones(1, 3)).tanh())


def test_only_the_same_registration_of_a_function_counts_as_changing() -> None:
    layers, calls = make_layers(), []

    def hook(module: nn.Module, x: Any, output: Tensor) -> Tensor | None:
        calls.append(module)
        return output + 1 if module is layers[1] else None

    for layer in layers:
        layer.register_forward_hook(hook)
    with watching_hooks(layers) as watched:
        layers(torch.ones(1, 3))
    with quiet_hooks(layers, watched.changing):
        layers(torch.ones(1, 3))
    assert calls == [*layers, layers[1]]


def test_hooks_of_litcams_fire_inside() -> None:
    """Those registered while a context is active, also where another one begins later, and those marked as its own."""
    layers, users, marked, later = make_layers(), Seen(), Seen(), Seen()
    layers[0].register_forward_hook(users)
    layers[0].register_forward_hook(in_this_thread(marked))
    with watching_hooks(layers):
        layers[0].register_forward_hook(later)
        with quiet_hooks(layers):
            layers(torch.ones(1, 3))
    assert (users, marked, later) == ([], [(1, 3)], [(1, 3)])
    with quiet_hooks(layers):  # by now it is as the user's
        layers(torch.ones(1, 3))
    assert (users, marked, later) == ([], [(1, 3)] * 2, [(1, 3)])


def test_contexts_may_be_nested_either_way() -> None:
    layers, users = make_layers(), Seen()
    layers[0].register_forward_hook(users)
    before = hook_dicts(layers)
    with quiet_hooks(layers):
        with watching_hooks(layers):
            layers(torch.ones(1, 3))
        with quiet_hooks(layers[0]), quiet_hooks(layers):
            layers(torch.ones(1, 3))
        layers(torch.ones(1, 3))
    assert not users
    assert hook_dicts(layers) == before


def test_hooks_may_come_and_go_inside() -> None:
    """One that removes itself, one removed from outside, and one that is added and stays."""
    layers, seen, added = make_layers(), Seen(), Seen()
    once = layers[0].register_forward_hook(lambda *_: once.remove())
    gone = layers[0].register_forward_hook(seen)
    with watching_hooks(layers):
        layers(torch.ones(1, 3))
    assert seen == [(1, 3)]
    with quiet_hooks(layers):
        gone.remove()
        layers[0].register_forward_hook(added)
    layers(torch.ones(1, 3))
    assert list(layers[0]._forward_hooks.values()) == [added]
    assert (seen, added) == ([(1, 3)], [(1, 3)])


def test_in_other_threads_the_hooks_fire() -> None:
    layers, users, own = make_layers(), Seen(), Seen()
    layers[0].register_forward_hook(users)
    with ThreadPoolExecutor(1) as pool, quiet_hooks(layers):
        layers[0].register_forward_hook(in_this_thread(own))
        pool.submit(layers, torch.ones(2, 3)).result()
        layers(torch.ones(1, 3))
    assert (users, own) == ([(2, 3)], [(1, 3)])


def test_threads_that_overlap_leave_the_hooks_as_they_were() -> None:
    """The one that came first leaves first, while the other is still inside."""
    layers, users = make_layers(), Seen()
    layers[0].register_forward_hook(users)
    before = hook_dicts(layers)
    first, second = quiet_hooks(layers), quiet_hooks(layers)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        one.submit(first.__enter__).result()
        other.submit(second.__enter__).result()
        one.submit(first.__exit__, None, None, None).result()
        one.submit(layers, torch.ones(2, 3)).result()
        other.submit(layers, torch.ones(1, 3)).result()
        other.submit(second.__exit__, None, None, None).result()
    assert users == [(2, 3)]
    assert hook_dicts(layers) == before


def test_a_copy_made_inside_has_the_users_hooks_and_none_of_litcams() -> None:
    """Another thread may copy or save the module at any time."""
    layers, own = make_layers(), Seen()
    layers[0].register_forward_hook(Seen())
    with quiet_hooks(layers):
        layers[0].register_forward_hook(in_this_thread(own))
        copies = [copy.deepcopy(layers), pickle.loads(pickle.dumps(layers))]
        for other in copies:
            other(torch.ones(1, 3))
    assert not own
    assert [next(iter(other[0]._forward_hooks.values())) for other in copies] == [[(1, 3)], [(1, 3)]]


def test_hooks_from_a_file_are_the_users_whatever_their_ids() -> None:
    """Torch gives ids anew in every process: a hook of litcam's would take the place of one that came from a file."""
    layers = make_layers()
    handle = layers[0].register_forward_hook(Seen())
    seen = layers[0]._forward_hooks.pop(handle.id)
    layers[0]._forward_hooks[handle.id + 1] = seen
    with quiet_hooks(layers):
        layers[0].register_forward_hook(in_this_thread(own := Seen()))
        layers(torch.ones(1, 3))
    assert (seen, own) == ([], [(1, 3)])
    assert len(layers[0]._forward_hooks) == 2


BACKWARD: dict[str, Callable[[nn.Module, Any], RemovableHandle]] = {
    "full": nn.Module.register_full_backward_hook,
    "before": nn.Module.register_full_backward_pre_hook,
    "of all": lambda module, hook: torch_module.register_module_full_backward_hook(hook),
    "before, of all": lambda module, hook: torch_module.register_module_full_backward_pre_hook(hook),
}


@pytest.mark.parametrize("kind", list(BACKWARD))
def test_backward_hooks_of_forwards_made_inside_are_quiet(kind: str) -> None:
    """Though the backward pass runs in another thread, as on a GPU; those of another thread's forward fire."""
    layers, calls = make_layers(), []
    x = torch.ones(1, 3, requires_grad=True)
    expected = torch.autograd.grad(layers(x).sum(), x)[0]
    handle = BACKWARD[kind](layers[2], lambda module, *gradients: calls.append(module))
    look_ups = nn.Module._get_backward_hooks, nn.Module._get_backward_pre_hooks
    with ThreadPoolExecutor(1) as pool:
        for context in (quiet_hooks(layers), without_backward_hooks()):
            with context:
                quiet, loud = layers(x).sum(), pool.submit(layers, x).result().sum()
            (gradient,) = pool.submit(torch.autograd.grad, quiet, x).result()
            torch.testing.assert_close(gradient, expected)
            assert not calls
            torch.autograd.grad(loud, x)
            assert layers[2] in calls
            calls.clear()
    handle.remove()
    assert (nn.Module._get_backward_hooks, nn.Module._get_backward_pre_hooks) == look_ups


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "prune"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weights_that_a_pre_hook_computes_are_there_where_it_is_quiet(kind: str) -> None:
    """Those of the forward that was watched; such a hook sets an attribute and changes no argument."""
    layers = make_layers().eval()
    wrap = {
        "weight_norm": nn.utils.weight_norm,
        "spectral_norm": nn.utils.spectral_norm,
        "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    }
    wrap[kind](layers[0])
    x = torch.randn(2, 3)
    with watching_hooks(layers) as watched:
        expected = layers(x)
    assert not watched.changing
    with quiet_hooks(layers, watched.changing):
        torch.testing.assert_close(layers(x[:1]), expected[:1])
