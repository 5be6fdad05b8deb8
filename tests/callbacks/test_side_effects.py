"""Monitoring changes nothing: weights, optimizers, losses and random numbers are those of a run without it."""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning_cases import History, assert_left_alone, digits, logged, make_trainer, tiny_classifier

from litcam.callbacks import HeatmapLogger, InitialValidation, LocalizationMonitor, PerturbationMonitor, StepSeed

RANDOM_PARTS = {"pos_drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.1, "drop_rate": 0.1}
TOKEN, AVERAGE = {"global_pool": "token"}, {"global_pool": "avg"}


def every_callback() -> list[L.Callback]:
    """All three kinds, boxes and masks, methods and controls, before the training too."""
    monitors: list[L.Callback] = [HeatmapLogger(num_images=4), LocalizationMonitor(regions="masks")]
    monitors += [InitialValidation()]
    for method in ("agcam", "rollout", "random", "center"):
        monitors += [LocalizationMonitor(method), PerturbationMonitor(method, num_images=3)]
    return monitors


class DrawsARandomNumber(L.Callback):
    """What a careless callback does."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        torch.rand(1)


@pytest.fixture(autouse=True)
def _seed_of_the_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give back the random state, and the variables that seed_everything sets."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")  # so that monkeypatch restores them
    state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    torch.set_rng_state(state[0])
    np.random.set_state(state[1])  # noqa: NPY002
    random.setstate(state[2])


def outcome(
    folder: Path, callbacks: list[L.Callback], step_seed: bool, net: dict[str, Any], **options: Any
) -> dict[str, Any]:
    """Everything that a run leaves, seeded as train.py does; mixup, dropout and drop path make random numbers count."""
    L.seed_everything(0, workers=True, verbose=False)
    module = tiny_classifier({**RANDOM_PARTS, **net}, drop_path=0.2, mixup=0.4, lr=0.01)
    history = History()
    first = [StepSeed(0)] if step_seed else []
    trainer = make_trainer(folder, [*first, history, *callbacks], **{"max_epochs": 2, **options})
    trainer.fit(module, digits(num_train=16))
    assert_left_alone(module)
    [optimizer] = trainer.optimizers
    return {
        "weights": {name: value.clone() for name, value in module.state_dict().items()},
        "optimizer": [value for state in optimizer.state.values() for value in state.values()],
        "losses": history.losses,
        "scores": [{k: v for k, v in scalars.items() if k.count("/") == 1} for scalars in history.scalars],
        "random numbers": [torch.rand(4), torch.from_numpy(np.random.rand(4)), random.random()],  # noqa: NPY002
    }


def same(one: Any, other: Any) -> bool:
    """Equality bit for bit, in depth."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("step_seed", [True, False], ids=["step_seed", "no_step_seed"])
@pytest.mark.parametrize("net", [TOKEN, AVERAGE], ids=["class_token", "average"])
def test_a_run_with_every_callback_is_bit_for_bit_the_run_without(
    tmp_path: Path, net: dict[str, Any], step_seed: bool
) -> None:
    alone = outcome(tmp_path, [], step_seed, net)
    watched = outcome(tmp_path, every_callback(), step_seed, net)
    assert len(alone["losses"]) == 4
    assert alone["optimizer"], "the optimizer has a state"
    for part in alone:
        assert same(alone[part], watched[part]), part


def test_one_random_number_drawn_by_a_callback_would_be_noticed_and_step_seed_heals_it(tmp_path: Path) -> None:
    for step_seed in (True, False):
        alone = outcome(tmp_path, [], step_seed, TOKEN)
        careless = outcome(tmp_path, [DrawsARandomNumber()], step_seed, TOKEN)
        assert same(alone["weights"], careless["weights"]) is step_seed
        assert same(alone["losses"], careless["losses"]) is step_seed


@pytest.mark.parametrize("net", [TOKEN, AVERAGE], ids=["class_token", "average"])
def test_validation_between_accumulated_gradients_leaves_them_alone(tmp_path: Path, net: dict[str, Any]) -> None:
    options = {"accumulate_grad_batches": 2, "val_check_interval": 1, "limit_train_batches": 4, "max_epochs": 1}
    alone = outcome(tmp_path, [], False, net, **options)
    watched = outcome(tmp_path, every_callback(), False, net, **options)
    assert len(alone["losses"]) == len(alone["scores"]) == 4, "a validation after every batch"
    for part in alone:
        assert same(alone[part], watched[part]), part


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("stage", ["validate", "test"])
def test_validate_and_test_change_no_weight_buffer_flag_gradient_or_random_number(
    tmp_path: Path, stage: str, inference_mode: bool
) -> None:
    class WithGradients(L.Callback):
        """Gives every second parameter a gradient, as a validation amid accumulated ones finds it."""

        def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            for parameter in list(pl_module.parameters())[::2]:
                parameter.grad = torch.full_like(parameter, 0.5)

        on_test_start = on_validation_start

    states, scores = [], []
    for monitors in ([], every_callback()):
        torch.manual_seed(0)
        module = tiny_classifier()
        module.net.blocks[0].eval()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        training = [child.training for child in module.modules()]
        trainer = make_trainer(tmp_path, [WithGradients(), *monitors], inference_mode=inference_mode)
        getattr(trainer, stage)(module, digits(), verbose=False)
        states.append([torch.get_rng_state(), torch.from_numpy(np.random.get_state()[1]), random.getstate()])  # noqa: NPY002
        scores.append({name: value for name, value in logged(trainer).items() if name.count("/") == 1})
        assert same(before, dict(module.state_dict()))
        assert [child.training for child in module.modules()] == training
        for number, parameter in enumerate(module.parameters()):
            assert parameter.requires_grad
            assert not parameter.is_inference()
            assert parameter.grad is None if number % 2 else bool((parameter.grad == 0.5).all())
    assert same(states[0], states[1])
    assert scores[0]
    assert scores[0] == scores[1]


def test_matmul_precision_determinism_and_threads_stay_as_they_are(tmp_path: Path) -> None:
    def settings() -> tuple[Any, ...]:
        return (
            torch.get_num_threads(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.get_default_dtype(),
        )

    before = settings()
    make_trainer(tmp_path, every_callback()).fit(tiny_classifier(), digits())
    assert settings() == before
