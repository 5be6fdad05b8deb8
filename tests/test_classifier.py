"""ViTClassifier: what its options promise reaches the optimizer, the net and the numbers."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
import yaml
from sklearn.metrics import average_precision_score
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import litcam
from cli_cases import ROOT, SMALL_RUN
from conftest import SMALL
from litcam import cli
from litcam.classifier import ViTClassifier
from litcam.data import DigitScenesDataModule, box_regions
from litcam.errors import InputError, UnsupportedModelError
from litcam.evaluation.runs import load_run
from litcam.learning_rate import WarmupCosine
from litcam.metrics import Localization

NAME = "vit_tiny_patch16_224"
SAVE_DIR = "--trainer.logger.init_args.save_dir"
SIZE = {key: value for key, value in SMALL.items() if key != "num_classes"}


def make_classifier(**arguments: Any) -> ViTClassifier:
    return ViTClassifier(NAME, **{"num_classes": 10, "pretrained": False, "model_kwargs": SIZE, **arguments})


def fit(classifier: ViTClassifier, **trainer_arguments: Any) -> L.Trainer:
    data = DigitScenesDataModule(num_train=16, num_val=8, num_test=8, batch_size=4, num_workers=0)
    trainer = quiet_trainer(**trainer_arguments)
    trainer.fit(classifier, data)
    return trainer


def quiet_trainer(**arguments: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, **arguments},
    )


def test_layer_decay_reaches_the_learning_rates() -> None:
    classifier = make_classifier(lr=0.1, layer_decay=0.5, warmup_share=0.0)
    optimizer = fit(classifier, max_steps=1).optimizers[0]
    rate_of = {id(parameter): group["initial_lr"] for group in optimizer.param_groups for parameter in group["params"]}
    rates = {name: rate_of[id(parameter)] for name, parameter in classifier.net.named_parameters()}
    assert rates["head.weight"] == pytest.approx(0.1)
    assert rates["blocks.2.mlp.fc1.weight"] == pytest.approx(0.1 * 0.5)
    assert rates["blocks.1.mlp.fc1.weight"] == pytest.approx(0.1 * 0.5**2)
    assert rates["blocks.0.attn.qkv.bias"] == pytest.approx(0.1 * 0.5**3)
    assert rates["patch_embed.proj.weight"] == pytest.approx(0.1 * 0.5**4)


def test_a_compiled_net_trains_with_the_rates_and_the_data_config_of_the_net_itself() -> None:
    plain, compiled = (make_classifier(lr=0.1, layer_decay=0.5, warmup_share=0.0) for _ in range(2))
    compiled.net = torch.compile(compiled.net, backend="eager")
    assert compiled.data_config == plain.data_config
    found = []
    for classifier in (plain, compiled):
        groups = fit(classifier, max_steps=1).optimizers[0].param_groups
        found.append([(group["initial_lr"], group["weight_decay"], len(group["params"])) for group in groups])
    assert found[0] == found[1]
    torch.compiler.reset()


def test_a_checkpoint_of_a_compiled_net_is_evaluated(tmp_path: Path) -> None:
    classifier = make_classifier()
    classifier.net = torch.compile(classifier.net, backend="eager")
    fit(classifier, max_steps=1).save_checkpoint(tmp_path / "compiled.ckpt")
    loaded, _ = load_run(tmp_path / "compiled.ckpt", {"class_path": "litcam.data.DigitScenesDataModule"})
    expected = classifier.net._orig_mod.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.net.state_dict().items())
    torch.compiler.reset()


def test_biases_norms_and_tokens_have_no_weight_decay() -> None:
    classifier = make_classifier(weight_decay=0.3)
    optimizer = fit(classifier, max_steps=1).optimizers[0]
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    decays = {name: decay_of[id(parameter)] for name, parameter in classifier.net.named_parameters()}
    assert decays["blocks.0.mlp.fc1.weight"] == 0.3
    assert {decays[name] for name in ("cls_token", "pos_embed", "norm.weight", "head.bias")} == {0.0}


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    schedule = WarmupCosine(steps=100, warmup_share=0.2, floor=0.1)
    assert [schedule(step) for step in (0, 9, 19, 20)] == pytest.approx([0.05, 0.5, 1.0, 1.0])
    assert schedule(60) == pytest.approx(0.1 + 0.9 * 0.5)
    assert schedule(100) == schedule(1000) == pytest.approx(0.1)


def test_the_schedule_moves_with_every_step() -> None:
    classifier = make_classifier(lr=0.1, warmup_share=0.5, min_lr_share=0.0)
    trainer = fit(classifier, max_epochs=2)  # 8 steps, 4 of warm-up
    assert trainer.global_step == 8
    assert trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-12)


def test_a_linear_probe_trains_the_head_alone() -> None:
    classifier = make_classifier(freeze_backbone=True, lr=0.1)
    before = {name: parameter.clone() for name, parameter in classifier.net.named_parameters()}
    fit(classifier)
    changed = {
        name for name, parameter in classifier.net.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed == {"head.weight", "head.bias"}


def test_label_smoothing_and_mixup_reach_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([1, 2, 3, 4])
    batch: Any = {"image": images, "label": labels}
    smooth = make_classifier(label_smoothing=0.2)
    monkeypatch.setattr(smooth, "log", lambda *arguments, **options: None)
    expected = F.cross_entropy(smooth(images), labels, label_smoothing=0.2)
    torch.testing.assert_close(smooth.training_step(batch, 0), expected)
    mixed = make_classifier(mixup=1.0, cutmix=1.0)
    monkeypatch.setattr(mixed, "log", lambda *arguments, **options: None)
    original = images.clone()
    assert not torch.isclose(mixed.training_step(batch, 0), F.cross_entropy(mixed(images), labels))
    assert torch.equal(images, original)


def test_accuracies_are_means_over_all_images() -> None:
    classifier = make_classifier()
    trainer = fit(classifier, limit_train_batches=1)
    data = trainer.datamodule
    logits, labels = [], []
    classifier.eval()
    for batch in data.val_dataloader():
        batch = data.normalize(batch)
        logits.append(classifier(batch["image"]).detach())
        labels.append(batch["label"])
    scores, truth = torch.cat(logits), torch.cat(labels)
    assert trainer.callback_metrics["val/accuracy"].item() == pytest.approx(
        (scores.argmax(1) == truth).float().mean().item()
    )
    top5 = (scores.topk(5).indices == truth[:, None]).any(1).float().mean().item()
    assert trainer.callback_metrics["val/accuracy_top5"].item() == pytest.approx(top5)
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(F.cross_entropy(scores, truth).item(), rel=1e-5)


def test_top_5_is_not_reported_for_fewer_than_ten_classes() -> None:
    assert set(make_classifier(num_classes=9).metrics["val_metrics"].keys()) == {"val/accuracy"}


def test_size_mean_and_std_are_the_models_own() -> None:
    config = make_classifier().data_config
    assert config["input_size"] == (3, 64, 64)  # the constructor's, not the 224 of the pretrained config
    assert config["mean"] == config["std"] == (0.5, 0.5, 0.5)
    deit = ViTClassifier("deit_tiny_patch16_224", 10, pretrained=False, model_kwargs=SIZE)
    assert deit.data_config["mean"] == (0.485, 0.456, 0.406)


def test_a_local_file_is_loaded_and_adapted_to_head_and_size(tmp_path: Path) -> None:
    source = timm.create_model(NAME, pretrained=False, **SMALL)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    classifier = make_classifier(pretrained=str(tmp_path / "weights.pth"), model_kwargs={**SIZE, "img_size": 96})
    assert torch.equal(classifier.net.blocks[0].attn.qkv.weight, source.blocks[0].attn.qkv.weight)
    assert classifier.net.head.weight.shape == (10, 48)
    assert classifier.net.pos_embed.shape == (1, 37, 48)


def test_the_packaged_weights_are_small_and_classify_digits() -> None:
    from litcam.models import WEIGHTS

    assert WEIGHTS.stat().st_size <= 1_000_000
    net = timm.create_model("vit_mini_patch8_64", pretrained=True).eval()
    data = DigitScenesDataModule(num_val=200, max_instances=2, clutter=3, contrast=90.0, texture=10.0, num_workers=0)
    data.use_data_config(ViTClassifier("vit_mini_patch8_64", 10, pretrained=False).data_config)
    with torch.no_grad():
        hits = [(net(data.normalize(b)["image"]).argmax(1) == b["label"]).float().mean() for b in data.val_dataloader()]
    assert torch.stack(hits).mean() > 0.8


def test_the_packaged_model_looks_anywhere_in_the_fog_of_the_default_run_and_at_the_digits_without() -> None:
    config = yaml.safe_load((Path(__file__).parent.parent / "configs" / "digits.yaml").read_text())
    module = ViTClassifier(**config["model"]).eval()
    explainer = litcam.create_explainer("agcam", module.net)
    found = {}
    for fog in (config["data"]["init_args"]["fog"], 0.0):
        data = DigitScenesDataModule(
            **{**config["data"]["init_args"], "fog": fog, "num_val": 250, "batch_size": 250, "num_workers": 0}
        )
        data.use_data_config(module.data_config)
        batch = data.normalize(next(iter(data.val_dataloader())))
        explanation, metric = explainer(batch["image"], batch["label"]), Localization()
        metric.update(explanation.upsample((64, 64)), box_regions(batch))
        scores = metric.compute()
        accuracy = (explanation.logits.argmax(1) == batch["label"]).float().mean()
        found[fog > 0] = [float(score) for score in (accuracy, scores["pointing_game"], scores["iou"])]
    assert all(score < most for score, most in zip(found[True], (0.2, 0.55, 0.25), strict=True)), found
    assert all(score > least for score, least in zip(found[False], (0.85, 0.85, 0.4), strict=True)), found


def test_drop_path_rises_to_the_rate_of_the_last_block() -> None:
    blocks = make_classifier(drop_path=0.2).net.blocks
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks] == pytest.approx([0.0, 0.1, 0.2])


def test_hyperparameters_are_primitive() -> None:
    def primitive(value: object) -> bool:
        if isinstance(value, dict):
            return all(isinstance(key, str) and primitive(item) for key, item in value.items())
        return value is None or isinstance(value, bool | int | float | str | tuple)

    assert primitive(dict(make_classifier().hparams))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes is 1"),
        ({"multi_label": True, "mixup": 0.2}, "mixup and cutmix mix one label per image"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
        ({"label_smoothing": math.nan}, "label_smoothing is nan"),
        ({"pretrained": "nowhere.pth"}, "'nowhere.pth', which does not exist"),
        ({"model_kwargs": {"depht": 3}}, "does not take these model_kwargs.*depht"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_classifier(**arguments)


def test_unknown_and_unsupported_models_are_named() -> None:
    with pytest.raises(InputError, match="timm has no model 'vit_bsae_patch16_224'; did you mean"):
        ViTClassifier("vit_bsae_patch16_224", 10, pretrained=False)
    with pytest.raises(UnsupportedModelError, match="resnet18 is a ResNet, not a Vision Transformer"):
        ViTClassifier("resnet18", 10, pretrained=False)


def test_weights_that_cannot_be_downloaded_are_told_how_else() -> None:
    with pytest.raises(InputError, match=r"could not be loaded.*give a local file"):
        ViTClassifier("vit_tiny_patch16_224", 10, pretrained=True)


def test_the_warmup_cosine_is_finite_for_a_single_step() -> None:
    assert math.isfinite(WarmupCosine(1, 0.0, 0.1)(0))


class Endless(IterableDataset[Any]):
    """Batches of images and labels, without a length and without an end."""

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield {"image": torch.zeros(2, 3, 64, 64), "label": torch.tensor([1, 2])}


class Rates(L.Callback):
    """Notes the learning rate of every step, and ends the fit after some."""

    def __init__(self, most: int = 5) -> None:
        self.most, self.rates = most, list[float]()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        trainer.should_stop = len(self.rates) >= self.most


def fit_with_or_without_an_end(classifier: ViTClassifier, endless: bool = False, **options: Any) -> None:
    """A fit on the usual data, or on endless ones."""
    if endless:
        quiet_trainer(**options).fit(classifier, DataLoader(Endless(), batch_size=None))
    else:
        fit(classifier, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": -1},
        {"max_epochs": None, "max_time": {"hours": 1}},
        {"max_epochs": -1, "max_steps": -1, "limit_train_batches": 2},
        {"max_epochs": 3, "endless": True},
        {"max_epochs": 3, "max_time": {"hours": 1}, "endless": True},
    ],
)
def test_of_a_training_without_a_known_end_the_learning_rate_rises_and_stays_and_that_is_said(
    options: dict[str, Any],
) -> None:
    rates, classifier = Rates(), make_classifier(lr=0.1, warmup_share=0.003, min_lr_share=0.0)
    with pytest.warns(UserWarning, match="How many steps this training has is not known"):
        fit_with_or_without_an_end(classifier, callbacks=[rates], **options)
    assert rates.rates == pytest.approx([0.1 / 3, 0.2 / 3, 0.1, 0.1, 0.1])


@pytest.mark.parametrize(
    "options",
    [
        {"max_epochs": None, "max_steps": 4},
        {"max_epochs": -1, "max_steps": 4},
        {"max_epochs": 1, "max_steps": -1, "max_time": {"hours": 1}},
        {"max_epochs": 2, "limit_train_batches": 2, "endless": True},
        {"max_epochs": 9, "max_steps": 4, "endless": True},
    ],
)
def test_a_known_end_ends_the_cosine(options: dict[str, Any], recwarn: pytest.WarningsRecorder) -> None:
    rates, classifier = Rates(), make_classifier(lr=0.1, warmup_share=0.0, min_lr_share=0.0)
    fit_with_or_without_an_end(classifier, callbacks=[rates], **options)
    assert rates.rates == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 4)) for step in range(4)])
    assert not any("How many steps" in str(warning.message) for warning in recwarn)


def test_the_command_line_trains_without_an_end_until_its_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    limits = ["--trainer.max_epochs=-1", "--trainer.max_time=00:00:00:02", "--trainer.callbacks=null"]
    with pytest.warns(UserWarning, match="How many steps this training has is not known"):
        cli.train(ROOT / "configs" / "digits.yaml", [*SMALL_RUN, *limits, f"{SAVE_DIR}={tmp_path}"])
    assert len((tmp_path / "digits" / "version_0" / "history.csv").read_text().splitlines()) > 2


def test_a_multi_label_run_learns_by_binary_cross_entropy_and_logs_average_precision() -> None:
    classifier = make_classifier(multi_label=True, lr=1e-3, label_smoothing=0.2)
    data = DigitScenesDataModule(num_train=16, num_val=8, classes=2, batch_size=4, num_workers=0)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, max_epochs=1,
    )  # fmt: skip
    trainer.fit(classifier, data)
    classifier.eval()
    data.batch_size = 8
    batch = data.normalize(next(iter(data.val_dataloader())))
    logits, labels = classifier(batch["image"]).detach(), batch["label"]
    loss = -torch.where(labels, logits.sigmoid().log(), (-logits).sigmoid().log()).mean()
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(float(loss), abs=1e-5)
    precisions = [average_precision_score(labels[:, c], logits[:, c]) for c in range(10) if labels[:, c].any()]
    assert float(trainer.callback_metrics["val/map"]) == pytest.approx(sum(precisions) / len(precisions), abs=1e-5)
    smoothed = classifier._loss_per_image(logits, labels, 0.2).mean()
    soft = labels * 0.8 + 0.1
    by_hand = -(soft * logits.sigmoid().log() + (1 - soft) * (-logits).sigmoid().log()).mean()
    torch.testing.assert_close(smoothed, by_hand)


@pytest.mark.parametrize(
    ("multi_label", "classes", "message"),
    [(True, 1, "multi_label is true, but the labels are class indices"), (False, 2, "label has to be class indices")],
)
def test_labels_of_the_other_kind_are_refused(multi_label: bool, classes: int, message: str) -> None:
    classifier = make_classifier(multi_label=multi_label)
    data = DigitScenesDataModule(num_val=4, classes=classes, batch_size=4, num_workers=0)
    with pytest.raises(InputError, match=message):
        classifier.validation_step(data.normalize(next(iter(data.val_dataloader()))), 0)
