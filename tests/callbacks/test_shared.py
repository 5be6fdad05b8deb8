"""What all monitors share: one forward, one explanation per image, any user's module, and nothing left behind."""

import gc
import math
import pickle
import weakref
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning_cases import (
    Scenes,
    UserModule,
    as_pair,
    assert_left_alone,
    assert_logged,
    batches_of,
    digits,
    loader,
    localization_by_hand,
    logged,
    make_trainer,
    perturbation_by_hand,
    tiny_classifier,
    tiny_net,
    with_tag,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, SubsetRandomSampler, default_collate

from litcam.callbacks import HeatmapLogger, LocalizationMonitor, PerturbationMonitor
from litcam.callbacks.monitor import ExplanationMonitor
from litcam.callbacks.shared import Explained
from litcam.data.batch import collate
from litcam.errors import UnsupportedModelError
from litcam.explainers import Explainer, create_explainer


class Watched(ExplanationMonitor):
    """A monitor that notes what it is given."""

    def start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.explained: list[Explained] = []

    def consume(self, explained: Explained) -> None:
        self.explained.append(explained)

    @property
    def tag(self) -> str:
        return str(id(self))  # it logs nothing, so that several may stand side by side

    def conclude(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.epochs = [*getattr(self, "epochs", []), [int(i) for part in self.explained for i in part.indices]]

    @property
    def indices(self) -> list[int]:
        """The images of the last epoch."""
        return self.epochs[-1]


@pytest.fixture
def forwards() -> Iterator["_Forwards"]:
    """Counts the forwards of a net that compute all tokens, and the images in them."""
    counter = _Forwards()
    yield counter
    counter.stop()


class _Forwards:
    def __init__(self) -> None:
        self.calls = self.images = 0
        self._hooks: list[Any] = []

    def watch(self, net: Any) -> None:
        self._hooks.append(net.blocks[-1].register_forward_hook(self._count))

    def _count(self, block: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        if output.shape[1] > 1:  # agcam sends the class token alone through the net again
            self.calls += 1
            self.images += len(output)

    def take(self) -> tuple[int, int]:
        """Forwards and images since the last call."""
        counted = self.calls, self.images
        self.calls = self.images = 0
        return counted

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


# Economy: nothing is computed twice.


def test_panel_and_localization_cost_no_forward_beyond_those_of_the_steps(tmp_path: Path, forwards: _Forwards) -> None:
    module = tiny_classifier()
    forwards.watch(module.net)
    make_trainer(tmp_path, []).validate(module, digits(), verbose=False)
    without = forwards.take()
    assert without == (3, 11)
    monitors = [HeatmapLogger(num_images=5), LocalizationMonitor(), LocalizationMonitor(regions="masks")]
    monitors += [LocalizationMonitor(explainer) for explainer in ("random", "center")]
    make_trainer(tmp_path, monitors).validate(module, digits(), verbose=False)
    assert forwards.take() == without


def test_a_fit_with_sanity_check_costs_no_further_forward_either(tmp_path: Path, forwards: _Forwards) -> None:
    counts = []
    for monitors in ([], [HeatmapLogger(num_images=5), LocalizationMonitor()]):
        module = tiny_classifier()
        forwards.watch(module.net)
        make_trainer(tmp_path, monitors, max_epochs=2).fit(module, digits())
        counts.append(forwards.take())
    assert counts[0] == counts[1]


def test_perturbation_forwards_18_images_per_image_and_one_empty_one_per_batch(
    tmp_path: Path, forwards: _Forwards
) -> None:
    module = tiny_classifier()
    forwards.watch(module.net)
    make_trainer(tmp_path, [PerturbationMonitor(num_images=None)]).validate(module, digits(), verbose=False)
    _, images = forwards.take()
    assert images == 11 + 18 * 11 + 3


def test_every_image_is_explained_once_per_method_and_epoch_whichever_callbacks_are_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained: Counter[tuple[str, int]] = Counter()
    explain = Explainer.explain

    def counting(self: Explainer, trace: Any, targets: Tensor | None = None) -> Any:
        explained.update((self.name, zlib.crc32(image.numpy().tobytes())) for image in trace.images)
        return explain(self, trace, targets)

    monkeypatch.setattr(Explainer, "explain", counting)
    methods = ("agcam", "rollout", "random", "center")
    monitors: list[L.Callback] = [HeatmapLogger(num_images=5), LocalizationMonitor(regions="masks")]
    monitors += [LocalizationMonitor(method) for method in methods]
    monitors += [PerturbationMonitor(method, num_images=4) for method in methods]
    make_trainer(tmp_path, monitors, max_epochs=2, num_sanity_val_steps=0).fit(tiny_classifier(), digits())
    assert {name for name, _ in explained} == set(methods)
    assert len(explained) == 11 * len(methods)
    assert set(explained.values()) == {2}, "two epochs, so twice"


def test_only_the_images_of_the_subset_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = []
    explain = Explainer.explain

    def counting(self: Explainer, trace: Any, targets: Tensor | None = None) -> Any:
        numbers.append(len(trace.images))
        return explain(self, trace, targets)

    monkeypatch.setattr(Explainer, "explain", counting)
    make_trainer(tmp_path, [Watched(num_images=4)]).validate(tiny_classifier(), digits(), verbose=False)
    assert sum(numbers) == 4


def test_callbacks_with_other_options_or_targets_do_not_share_their_maps(tmp_path: Path) -> None:
    watched = [Watched(), Watched(target="predicted"), Watched(explainer_options={"head_fusion": "max"})]
    make_trainer(tmp_path, watched).validate(tiny_classifier(), digits(), verbose=False)
    maps = [torch.cat([part.heatmaps for part in monitor.explained]) for monitor in watched]
    assert not torch.equal(maps[0], maps[1])
    assert not torch.equal(maps[0], maps[2])


# Subsets.


def test_a_subset_is_random_by_its_seed_and_the_same_in_every_epoch(tmp_path: Path) -> None:
    watched = [Watched(num_images=4), Watched(num_images=4), Watched(num_images=4, seed=1), Watched(num_images=99)]
    make_trainer(tmp_path, watched, max_epochs=3).fit(tiny_classifier(), digits())
    first, same, other, every = (monitor.epochs for monitor in watched)
    assert len(first) == 3
    assert first[0] == first[1] == first[2]
    assert first == same
    assert first != other
    assert len(set(first[0])) == len(set(other[0])) == 4
    assert sorted(every[0]) == list(range(11))


@pytest.mark.parametrize("batch_size", [1, 3, 11])
def test_a_subset_does_not_depend_on_the_batch_size(tmp_path: Path, batch_size: int) -> None:
    watched, reference = Watched(num_images=4), Watched(num_images=4)
    make_trainer(tmp_path, [watched]).validate(UserModule(), loader(batch_size=batch_size), verbose=False)
    make_trainer(tmp_path, [reference]).validate(UserModule(), loader(), verbose=False)
    assert len(watched.indices) == 4
    assert watched.indices == reference.indices
    for part in watched.explained:
        for index, image in zip(part.indices.tolist(), part.trace.images, strict=True):
            assert torch.equal(image, Scenes()[index]["image"])


@pytest.mark.parametrize(("limit", "batches"), [(2, 2), (0.67, 2)])
def test_a_subset_is_drawn_from_the_images_that_limit_val_batches_leaves(
    tmp_path: Path, limit: float, batches: int
) -> None:
    watched, every = Watched(num_images=5), Watched()
    trainer = make_trainer(tmp_path, [watched, every], limit_val_batches=limit)
    trainer.validate(tiny_classifier(), digits(), verbose=False)
    assert every.indices == list(range(4 * batches))
    assert len(watched.indices) == 5


def test_a_subset_is_complete_under_a_sampler_that_leaves_images_out(tmp_path: Path) -> None:
    sampler = SubsetRandomSampler(range(20, 28))
    data = DataLoader(Scenes(40), 3, sampler=sampler, collate_fn=collate)
    watched = Watched(num_images=6)
    make_trainer(tmp_path, [watched]).validate(UserModule(), data, verbose=False)
    assert len(watched.indices) == 6


class Stream(IterableDataset[Any]):
    """Eleven images without a length."""

    def __iter__(self) -> Iterator[Any]:
        return (Scenes(11)[index] for index in range(11))


def test_a_dataset_without_a_length_is_watched_too_and_a_subset_is_its_first_images(tmp_path: Path) -> None:
    every, some = Watched(), Watched(num_images=5)
    data = DataLoader(Stream(), 3, collate_fn=collate)
    make_trainer(tmp_path, [every, some], max_epochs=2).fit(UserModule(), loader(), data)
    assert every.epochs == [list(range(11))] * 2
    assert some.epochs == [list(range(5))] * 2


# Any user's module.


class CallsItself(UserModule):
    """The plain case."""


class CallsItsNet(UserModule):
    """Leaves its own forward aside."""

    def logits(self, images: Tensor) -> Tensor:
        return self.net(images)


class HasNoForward(UserModule):
    """Does all work in its steps."""

    forward = L.LightningModule.forward

    def logits(self, images: Tensor) -> Tensor:
        return self.net(images)


class OwnHead(UserModule):
    """A head of the user's own on a backbone without one."""

    num_classes = 0

    def __init__(self) -> None:
        super().__init__(tiny_net(self.num_classes))
        generator = torch.Generator().manual_seed(3)
        self.head = nn.Linear(self.num_classes or 48, 10)
        nn.init.normal_(self.head.weight, generator=generator)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.net(images))


class OwnHeadInTheStep(OwnHead):
    """Likewise, and its steps leave the forward aside."""

    def logits(self, images: Tensor) -> Tensor:
        return self.head(self.net(images))


class OwnHeadOnClassesInTheStep(OwnHeadInTheStep):
    """Likewise, and the net has a head too, whose outputs are not the classes."""

    num_classes = 12


class FlipsAfterwards(UserModule):
    """Test-time augmentation: two forwards in a step, the second of flipped images."""

    def logits(self, images: Tensor) -> Tensor:
        return (self(images) + self(images.flip(-1))) / 2


class FlipsBefore(UserModule):
    """Likewise, the flipped images first."""

    def logits(self, images: Tensor) -> Tensor:
        return (self(images.flip(-1)) + self(images)) / 2


class FlipsInTheBatch(UserModule):
    """Likewise, in one forward of twice as many images."""

    def logits(self, images: Tensor) -> Tensor:
        both = self(torch.cat([images.flip(-1), images]))
        return both[: len(images)] + both[len(images) :]


class ForwardOfOneArgumentMore(UserModule):
    """Is called by keyword."""

    def forward(self, images: Tensor, temperature: float = 1.0) -> Tensor:
        return self.net(images) / temperature

    def logits(self, images: Tensor) -> Tensor:
        return self(images=images)


class CallsItsNetByKeyword(UserModule):
    """Likewise, and so is the net."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(x=images)


class ForwardOfABatch(UserModule):
    """Its forward takes whole batches."""

    def forward(self, batch: Any) -> Tensor:
        return self.net(batch["image"])

    def logits(self, images: Tensor) -> Tensor:
        return self({"image": images})


USER_MODULES = [
    CallsItself,
    CallsItsNet,
    HasNoForward,
    OwnHead,
    OwnHeadInTheStep,
    OwnHeadOnClassesInTheStep,
    FlipsAfterwards,
    FlipsBefore,
    FlipsInTheBatch,
    ForwardOfOneArgumentMore,
    CallsItsNetByKeyword,
    ForwardOfABatch,
]


@pytest.mark.parametrize("kind", USER_MODULES)
def test_a_users_module_is_explained_through_the_logits_of_its_own_images(
    tmp_path: Path, kind: type[UserModule]
) -> None:
    module, data = kind(), loader()
    trainer = make_trainer(tmp_path, [LocalizationMonitor(), PerturbationMonitor(num_images=None)])
    trainer.validate(module, data, verbose=False)
    whole = nn.Sequential(module.net, module.head) if isinstance(module, OwnHead) else module.net
    whole.eval()
    expected = localization_by_hand(whole, data) | perturbation_by_hand(whole, data)
    assert_logged(logged(trainer), with_tag("val/agcam/", expected))
    flipped = localization_by_hand(whole, data, flip=True)
    assert abs(flipped["iou"] - expected["iou"]) > 1e-3, "maps of flipped images would not be noticed"


@pytest.mark.parametrize("kind", [CallsItself, CallsItsNet, OwnHead])
def test_a_fit_works_with_a_users_module_and_pairs(tmp_path: Path, kind: type[UserModule]) -> None:
    module, data = kind(), loader(pairs=True)
    monitors = [HeatmapLogger(num_images=4), PerturbationMonitor(num_images=None)]
    trainer = make_trainer(tmp_path, monitors, max_epochs=2)
    trainer.fit(module, loader(pairs=True), data)
    whole = nn.Sequential(module.net, module.head) if isinstance(module, OwnHead) else module.net
    assert_logged(logged(trainer), with_tag("val/agcam/", perturbation_by_hand(whole.eval(), data)))


class NormalizesInTheStep(UserModule):
    """Gets images in [0, 1] and prepares them itself."""

    def logits(self, images: Tensor) -> Tensor:
        return self(images * 4 - 2)


def test_a_step_that_prepares_its_images_is_explained_at_the_images_that_the_net_got(tmp_path: Path) -> None:
    module, watched = NormalizesInTheStep(), Watched()
    make_trainer(tmp_path, [watched]).validate(module, loader(batch_size=11), verbose=False)
    [batch] = batches_of(loader(batch_size=11))
    [explained] = watched.explained
    assert torch.equal(explained.trace.images, batch["image"] * 4 - 2)
    torch.testing.assert_close(explained.explanation.logits, module.eval()(batch["image"] * 4 - 2))


@pytest.mark.parametrize("explainer", ["raw_attention", "rollout", "generic_attention", "legrad"])
@pytest.mark.parametrize("kind", [CallsItsNet, HasNoForward, OwnHeadInTheStep, CallsItself])
def test_methods_that_read_rows_give_what_they_give_by_themselves(
    tmp_path: Path, kind: type[UserModule], explainer: str
) -> None:
    module, watched = kind(), Watched(explainer=explainer)
    make_trainer(tmp_path, [watched]).validate(module, loader(batch_size=11), verbose=False)
    [explained] = watched.explained
    [batch] = batches_of(loader(batch_size=11))
    whole = nn.Sequential(module.net, module.head) if isinstance(module, OwnHead) else module.net
    expected = create_explainer(explainer, whole.eval())(batch["image"], batch["label"])
    torch.testing.assert_close(explained.explanation.heatmaps, expected.heatmaps, rtol=1e-4, atol=1e-6)


class FlipsBeforeItsForward(UserModule):
    """A step that gives its forward the images the other way round."""

    def logits(self, images: Tensor) -> Tensor:
        return self(images.flip(-1))


def test_a_step_that_moves_its_images_is_explained_where_they_lie_in_the_batch(tmp_path: Path) -> None:
    module, watched = FlipsBeforeItsForward(), Watched()
    make_trainer(tmp_path, [watched]).validate(module, loader(batch_size=11), verbose=False)
    [batch] = batches_of(loader(batch_size=11))
    [explained] = watched.explained
    assert torch.equal(explained.trace.images, batch["image"])


class FlipsInItsForward(UserModule):
    """A forward that turns its images round."""

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images.flip(-1))


class AveragesInItsForward(UserModule):
    """A forward that takes the mean over two runs."""

    def forward(self, images: Tensor) -> Tensor:
        return (self.net(images) + self.net(images.flip(-1))) / 2


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (FlipsInItsForward, "FlipsInItsForward: its VisionTransformer does not look at its 4x4 patches where they lie"),
        (AveragesInItsForward, "AveragesInItsForward runs its VisionTransformer 2 times in one forward"),
    ],
)
def test_what_cannot_be_laid_on_the_images_ends_the_validation_in_a_sentence(
    tmp_path: Path, kind: type[UserModule], sentence: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=sentence):
        make_trainer(tmp_path, [Watched()]).validate(kind(), loader(batch_size=11), verbose=False)


def test_the_first_of_two_dataloaders_is_watched_and_the_names_stay_plain(tmp_path: Path) -> None:
    module = UserModule()
    trainer = make_trainer(tmp_path, [LocalizationMonitor(), Watched(num_images=4)])
    trainer.fit(module, loader(), [loader(), loader(7, batch_size=2)])
    assert_logged(logged(trainer), with_tag("val/agcam/", localization_by_hand(module.net.eval(), loader())))
    named = make_trainer(tmp_path, [LocalizationMonitor(), watched := Watched(num_images=4)])
    named.validate(module, {"first": loader(), "second": loader(7, batch_size=2)}, verbose=False)
    assert_logged(logged(named), with_tag("val/agcam/", localization_by_hand(module.net.eval(), loader())))
    assert len(watched.indices) == 4


class OwnLoader:
    """A loader that is none of torch's."""

    def __iter__(self) -> Iterator[Any]:
        return iter(loader())


BATCHES = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]


@pytest.mark.parametrize("own", [OwnLoader(), DataLoader(Scenes(), batch_sampler=BATCHES, collate_fn=collate)])
def test_batches_of_a_loader_of_the_users_own_are_watched(tmp_path: Path, own: Any) -> None:
    module = UserModule()
    trainer = make_trainer(tmp_path, [LocalizationMonitor()])
    trainer.validate(module, own, verbose=False)
    assert_logged(logged(trainer), with_tag("val/agcam/", localization_by_hand(module.net.eval(), loader())))


# Compiled modules: hooks and attention calls are invisible there, and a forward of its own is recorded.


class HoldsACompiledNet(UserModule):
    """The net is wrapped by torch.compile."""

    def __init__(self) -> None:
        super().__init__(torch.compile(tiny_net(), backend="eager"))


def _compiled(how: str) -> Any:
    if how == "wrapped net":
        return HoldsACompiledNet()
    module = UserModule()
    net = module.net
    if how == "wrapped block":
        net.blocks[1] = torch.compile(net.blocks[1], backend="eager")
    elif how == "wrapped list of blocks":
        net.blocks = torch.compile(net.blocks, backend="eager")
    elif how == "forward of the net":
        net.forward = torch.compile(net.forward, backend="eager")
    elif how == "net in place":
        net.compile(backend="eager")
    elif how == "module in place":
        module.compile(backend="eager")
    return torch.compile(module, backend="eager") if how == "whole module" else module


COMPILED = ("net in place", "wrapped net", "module in place", "whole module")
COMPILED += ("wrapped block", "wrapped list of blocks", "forward of the net")


@pytest.mark.parametrize("how", COMPILED)
def test_a_compiled_module_is_explained_like_the_module_itself(tmp_path: Path, how: str) -> None:
    torch.compiler.reset()
    monitors: list[L.Callback] = [LocalizationMonitor(), LocalizationMonitor("relevance"), HeatmapLogger(num_images=2)]
    if how == "net in place":
        monitors.append(PerturbationMonitor(num_images=None))
    trainer = make_trainer(tmp_path, monitors)
    trainer.validate(_compiled(how), loader(4), verbose=False)
    net = tiny_net().eval()
    expected = with_tag("val/agcam/", localization_by_hand(net, loader(4)))
    expected |= with_tag("val/relevance/", localization_by_hand(net, loader(4), "relevance"))
    if how == "net in place":
        expected |= with_tag("val/agcam/", perturbation_by_hand(net, loader(4)))
    assert_logged(logged(trainer), expected)
    assert (tmp_path / "heatmaps" / "agcam" / "epoch_000.png").is_file()
    torch.compiler.reset()


def test_a_fit_of_a_net_that_is_compiled_in_place_logs_what_its_weights_give(tmp_path: Path) -> None:
    torch.compiler.reset()
    module = _compiled("net in place")
    trainer = make_trainer(tmp_path, [LocalizationMonitor()], limit_train_batches=1, num_sanity_val_steps=0)
    trainer.fit(module, loader(4), loader(4))
    net = tiny_net().eval()
    assert not same_weights(net, module.net)
    net.load_state_dict(module.net.state_dict())
    assert_logged(logged(trainer), with_tag("val/agcam/", localization_by_hand(net, loader(4))))
    torch.compiler.reset()


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_compiled_net_is_still_compiled_after_validation(tmp_path: Path) -> None:
    torch.compiler.reset()
    compilations = []

    def backend(graph: Any, examples: Any) -> Any:
        compilations.append(graph)
        return graph.forward

    module = UserModule()
    module.net.compile(backend=backend)
    trainer = make_trainer(tmp_path, [LocalizationMonitor()])
    trainer.validate(module, loader(8), verbose=False)
    assert compilations, "the step ran the compiled net"
    known = len(compilations)
    trainer.validate(module, loader(8), verbose=False)
    assert len(compilations) == known, "nothing that the monitor does makes torch compile again"
    torch.compiler.reset()


# Nothing is left behind.


class Fails(UserModule):
    """Its second validation step raises, in the step itself or in the middle of the net."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        super().validation_step(batch, batch_idx, dataloader_idx)
        if batch_idx == 1:
            if self.where == "net":
                self.net(as_pair(batch)[0][..., :-7])
            raise RuntimeError("a step failed")


@pytest.mark.parametrize("where", ["step", "net"])
def test_a_step_that_raises_leaves_no_hook_and_no_mode_and_the_trainer_goes_on(tmp_path: Path, where: str) -> None:
    module, monitor = Fails(where), LocalizationMonitor()
    trainer = make_trainer(tmp_path, [monitor], num_sanity_val_steps=0)
    with pytest.raises((RuntimeError, AssertionError, ValueError)):
        trainer.fit(module, loader(), loader())
    assert_left_alone(module)
    healthy = UserModule(module.net)
    trainer.validate(healthy, loader(), verbose=False)
    assert_logged(logged(trainer), with_tag("val/agcam/", localization_by_hand(module.net.eval(), loader())))
    assert_left_alone(healthy)


def test_after_a_fit_no_hook_is_left_and_the_training_flags_are_back(tmp_path: Path) -> None:
    module = tiny_classifier()
    module.net.blocks[0].eval()  # a user's choice, which Lightning restores after validation
    monitors = [HeatmapLogger(num_images=3), LocalizationMonitor(), PerturbationMonitor(num_images=3)]
    flags = []

    class Flags(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            flags.append((pl_module.net.training, pl_module.net.blocks[0].training, pl_module.net.blocks[1].training))
            assert_left_alone(pl_module)

    make_trainer(tmp_path, [*monitors, Flags()], max_epochs=2).fit(module, digits())
    assert flags == [(True, False, True)] * 4
    assert_left_alone(module)


def test_between_validations_no_batch_is_kept_alive(tmp_path: Path) -> None:
    seen, alive = [], []

    class Notes(UserModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx, dataloader_idx)
            seen.append(weakref.ref(batch["image"]))

        def on_train_epoch_end(self) -> None:
            gc.collect()
            alive.append(sum(image() is not None for image in seen))

    monitors = [HeatmapLogger(num_images=3), LocalizationMonitor(), PerturbationMonitor(num_images=3)]
    make_trainer(tmp_path, monitors, max_epochs=2).fit(Notes(), loader(8), loader(11))
    assert len(seen) == 2 + 3 + 3
    assert alive == [0, 0]


def test_the_sanity_check_leaks_nothing_into_the_first_epoch(tmp_path: Path) -> None:
    scalars = []
    for steps in (0, 2, -1):
        trainer = make_trainer(
            tmp_path, [LocalizationMonitor(), PerturbationMonitor(num_images=5)], num_sanity_val_steps=steps
        )
        trainer.fit(UserModule(), loader(), loader())
        scalars.append(logged(trainer))
    assert scalars[0] == scalars[1] == scalars[2]


def test_the_sanity_check_alone_logs_nothing_and_draws_no_panel(tmp_path: Path) -> None:
    monitors = [LocalizationMonitor(), HeatmapLogger(num_images=3), PerturbationMonitor(num_images=3)]

    class Stops(L.Callback):
        seen: dict[str, float]

        def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            Stops.seen = logged(trainer)
            assert not list(tmp_path.rglob("*.png"))

    make_trainer(tmp_path, [*monitors, Stops()]).fit(UserModule(), loader(), loader())
    assert not any(name.startswith("val/agcam") for name in Stops.seen)


def test_one_trainer_serves_one_module_after_the_other(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, [LocalizationMonitor()])
    for seed in (0, 1):
        module = UserModule(tiny_net(embed_dim=48 + 48 * seed))
        trainer.validate(module, loader(), verbose=False)
        assert_logged(logged(trainer), with_tag("val/agcam/", localization_by_hand(module.net.eval(), loader())))


def test_pairs_of_a_plain_loader_need_no_collate_function(tmp_path: Path) -> None:
    data = DataLoader(Scenes(8, pairs=True), 4, collate_fn=default_collate)
    watched = Watched()
    make_trainer(tmp_path, [watched]).validate(UserModule(), data, verbose=False)
    assert watched.indices == list(range(8))


def test_a_model_that_has_diverged_is_watched_on(tmp_path: Path) -> None:
    module = UserModule()
    torch.nn.init.constant_(module.net.blocks[0].attn.qkv.weight, float("nan"))
    monitors: list[L.Callback] = [HeatmapLogger(num_images=3)]
    monitors += [kind(method) for kind in (LocalizationMonitor, PerturbationMonitor) for method in ("agcam", "center")]
    trainer = make_trainer(tmp_path, monitors)
    trainer.validate(module, loader(), verbose=False)
    scores = logged(trainer)
    assert scores["val/agcam/degenerate"] == scores["val/agcam/perturbation_degenerate"] == 11
    assert math.isnan(scores["val/agcam/iou"])
    assert scores["val/center/iou"] == pytest.approx(localization_by_hand(tiny_net(), loader(), "center")["iou"])


def test_monitors_can_be_sent_to_other_processes() -> None:
    for monitor in (HeatmapLogger(), LocalizationMonitor(), PerturbationMonitor()):
        copied = pickle.loads(pickle.dumps(monitor))
        assert type(copied) is type(monitor)
        assert copied.request == monitor.request


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_logs_the_numbers_of_the_cpu(tmp_path: Path) -> None:
    scores = []
    for accelerator in ("cpu", "gpu"):
        monitors: list[L.Callback] = [HeatmapLogger(num_images=5), PerturbationMonitor(num_images=4)]
        monitors += [LocalizationMonitor(), LocalizationMonitor(regions="masks", wrong_predictions="skip")]
        trainer = make_trainer(tmp_path, monitors, accelerator=accelerator)
        trainer.validate(UserModule(), loader(), verbose=False)
        scores.append(logged(trainer))
    assert_logged(scores[1], scores[0], tolerance=0.02)  # the kernels round differently
