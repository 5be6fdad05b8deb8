"""True precisions: weights and images in bfloat16, float16 or float64 train, and every number is the one by hand."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning_cases import (
    UserModule,
    assert_logged,
    digits,
    loader,
    localization_by_hand,
    logged,
    make_trainer,
    perturbation_by_hand,
    tiny_classifier,
    with_tag,
)
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from cli_cases import ROOT, SMALL_RUN
from litcam import cli
from litcam.callbacks import DriftMonitor, HeatmapLogger, LocalizationMonitor, PerturbationMonitor
from litcam.data import DigitScenesDataModule
from litcam.errors import InputError

DTYPES = {"bf16-true": torch.bfloat16, "16-true": torch.float16, "64-true": torch.float64}


class Boxes(L.Callback):
    """Keeps the boxes and the images that the steps get."""

    def __init__(self) -> None:
        self.boxes: list[torch.Tensor] = []
        self.dtypes: set[torch.dtype] = set()

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.boxes.append(batch["boxes"])
        self.dtypes.add(batch["image"].dtype)

    on_test_batch_start = on_validation_batch_start


def monitors() -> list[L.Callback]:
    return [HeatmapLogger(num_images=4), LocalizationMonitor(), PerturbationMonitor(num_images=None), DriftMonitor()]


@pytest.mark.parametrize("precision", list(DTYPES))
def test_a_true_precision_trains_and_every_number_is_that_of_its_own_weights(tmp_path: Path, precision: str) -> None:
    module, data, seen = tiny_classifier(lr=1e-3), digits(), Boxes()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = make_trainer(tmp_path, [seen, *monitors()], precision=precision)
    trainer.fit(module, data)
    assert {parameter.dtype for parameter in module.parameters()} == seen.dtypes == {DTYPES[precision]}
    assert any(
        not torch.equal(value.to(DTYPES[precision]), module.state_dict()[name]) for name, value in before.items()
    )
    of_fit = logged(trainer)
    assert all(torch.tensor(value).isfinite() for name, value in of_fit.items() if "/drift/" not in name), of_fit
    own = DigitScenesDataModule(8, 11, 11, batch_size=4, num_workers=0)  # has no trainer
    own.use_model(module)
    for stage, split in (("validate", "val"), ("test", "test")):
        seen.boxes.clear()
        getattr(trainer, stage)(module, data, verbose=False)
        batches: list[Any] = [own.normalize(batch) for batch in own.evaluation_dataloader(split)]  # type: ignore[arg-type]
        assert all(torch.equal(a, batch["boxes"]) for a, batch in zip(seen.boxes, batches, strict=True))
        cast = [{**batch, "image": batch["image"].to(DTYPES[precision])} for batch in batches]
        with torch.no_grad():
            logits = torch.cat([module.net.eval()(batch["image"]) for batch in cast]).double()
        labels = torch.cat([batch["label"] for batch in cast])
        expected = {"loss": float(F.cross_entropy(logits, labels))}
        expected["accuracy"] = float((logits.argmax(1) == labels).double().mean())
        assert_logged(logged(trainer), with_tag(f"{split}/", expected))
        assert split != "val" or of_fit["val/loss"] == pytest.approx(expected["loss"], abs=1e-6)
        maps = localization_by_hand(module.net, cast) | perturbation_by_hand(module.net, cast)
        assert_logged(logged(trainer), with_tag(f"{split}/agcam/", maps), tolerance=1e-5)


def test_double_precision_gives_the_numbers_of_single_precision(tmp_path: Path) -> None:
    found = []
    for precision in ("32-true", "64-true"):
        trainer = make_trainer(tmp_path, [LocalizationMonitor()], precision=precision)
        trainer.fit(tiny_classifier(lr=1e-3), digits())
        found.append(logged(trainer))
    single, double = ({name: value for name, value in one.items() if "pointing_game" not in name} for one in found)
    assert single == pytest.approx(double, rel=1e-4), "rounding alone decides between maxima that are equal"


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_mixup_and_several_labels_train_in_half_precision(tmp_path: Path, precision: str) -> None:
    trainer = make_trainer(tmp_path, [], precision=precision)
    trainer.fit(tiny_classifier(mixup=0.4), digits())
    assert all(torch.tensor(value).isfinite() for value in logged(trainer).values())
    trainer, module = make_trainer(tmp_path, [], precision=precision), tiny_classifier(multi_label=True)
    data = DigitScenesDataModule(8, 8, classes=2, batch_size=8, num_workers=0)
    trainer.fit(module, data)
    with torch.no_grad():
        batch = next(iter(data.val_dataloader()))
        images, labels = data.normalize(batch)["image"].to(DTYPES[precision]), batch["label"]
        logits = module.net.eval()(images).double()
    loss = F.binary_cross_entropy_with_logits(logits, labels.double())
    precisions = [average_precision_score(labels[:, c], logits[:, c]) for c in range(10) if labels[:, c].any()]
    expected = {"val/loss": float(loss), "val/map": sum(precisions) / len(precisions)}
    assert_logged(logged(trainer), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_mean_loss_counts_all_images_in_half_precision(dtype: torch.dtype) -> None:
    """A bfloat16 counts to 256, a float16 to 2048."""
    module = tiny_classifier().to(dtype)
    metric: Any = module.losses["val_loss"]
    for losses in torch.arange(5000.0).split(50):
        metric.update(losses)
    assert float(metric.compute()) == 2499.5
    metric.reset()
    assert metric.mean_value.dtype == torch.float32


def test_float16_steps_stay_finite_where_gradients_are_too_small_to_be_squared(tmp_path: Path) -> None:
    module = tiny_classifier(lr=1e-2, warmup_share=0.0, weight_decay=0.0)
    trainer = make_trainer(tmp_path, [], precision="16-true", limit_train_batches=1, num_sanity_val_steps=0)
    trainer.fit(module, digits())
    for size in (0.0, 1e-7, 1e-5, 1e-3, 5e-3, 1e-2, 1.0):
        [optimizer] = trainer.optimizers
        optimizer.state.clear()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
            for parameter in group["params"]:
                parameter.grad = torch.full_like(parameter, size)
        old = [parameter.detach().clone() for parameter in module.parameters()]
        optimizer.step()
        steps = [float((new - was).abs().max().detach()) for new, was in zip(module.parameters(), old, strict=True)]
        assert max(steps) <= 0.016, (size, max(steps))


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_boxes_that_a_users_loader_lets_lightning_round_are_refused_and_whole_pixels_are_taken(
    tmp_path: Path, precision: str
) -> None:
    rounded = make_trainer(tmp_path, [LocalizationMonitor()], precision=precision)
    with pytest.raises(InputError, match=r"boxes are torch.\w*float16.*give whole pixels as int64"):
        rounded.validate(UserModule(), loader(), verbose=False)
    whole = loader()
    collate: Any = whole.collate_fn
    whole.collate_fn = lambda samples: {**(batch := collate(samples)), "boxes": batch["boxes"].long()}
    trainer, module = make_trainer(tmp_path, [LocalizationMonitor()], precision=precision), UserModule()
    trainer.validate(module, whole, verbose=False)
    cast = [{**batch, "image": batch["image"].to(DTYPES[precision])} for batch in loader()]
    assert_logged(logged(trainer), with_tag("val/agcam/", localization_by_hand(module.net.eval(), cast)))


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_a_checkpoint_of_a_true_precision_is_evaluated(
    tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    place = [f"--trainer.logger.init_args.save_dir={tmp_path}", "--trainer.max_epochs=1", "--trainer.callbacks=null"]
    cli.train(ROOT / "configs" / "digits.yaml", [*SMALL_RUN, *place, f"--trainer.precision={precision}"])
    run = tmp_path / "digits" / "version_0"
    cli.evaluate(["--ckpt_path", str(run), "--methods", "agcam", "--metrics", "localization", "--num_images", "8"])
    assert "agcam" in capsys.readouterr().out
