"""What a monitor cannot do it says in one sentence, before or in the sanity check, and names the remedy."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import timm
import torch
from lightning_cases import (
    Scenes,
    UserModule,
    assert_left_alone,
    digits,
    loader,
    logged,
    make_trainer,
    tiny_classifier,
    tiny_net,
)
from torch import nn
from torch.utils.data import DataLoader

from litcam.callbacks import HeatmapLogger, LocalizationMonitor, PerturbationMonitor, RelianceMonitor
from litcam.data.batch import collate
from litcam.errors import InputError, LitcamError, UnsupportedModelError

MONITORS = (HeatmapLogger, LocalizationMonitor, PerturbationMonitor)


@pytest.mark.parametrize("kind", MONITORS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"explainer": "gradcamm"}, "no explainer 'gradcamm'; choose one of agcam, "),
        ({"explainer_options": {"fusion": "sum"}}, "agcam has no option 'fusion'; it has gradient, head_fusion"),
        ({"explainer": "rollout", "explainer_options": {"sigma": 1}}, "rollout has no option 'sigma'"),
        ({"target": "best"}, "target is 'best'; choose one of true, predicted"),
        ({"num_images": 0}, "num_images is 0; at least 1"),
    ],
)
def test_a_wrong_argument_of_any_monitor_is_refused_at_construction(
    kind: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        kind(**arguments)


@pytest.mark.parametrize(
    ("construct", "message"),
    [
        (lambda: LocalizationMonitor(regions="boxs"), "regions is 'boxs'; choose one of boxes, masks"),
        (
            lambda: LocalizationMonitor(wrong_predictions="drop"),
            "wrong_predictions is 'drop'; choose one of keep, skip",
        ),
        (lambda: LocalizationMonitor(threshold=1.0), "threshold is 1.0"),
        (lambda: HeatmapLogger(threshold=-0.1), "threshold is -0.1"),
        (lambda: HeatmapLogger(columns=0), "columns is 0"),
        (lambda: HeatmapLogger(colormap="jett"), "no colormap 'jett'"),
        (lambda: PerturbationMonitor(batch_size=0), "batch_size is 0"),
    ],
)
def test_a_wrong_argument_of_one_monitor_is_refused_at_construction(
    construct: Callable[[], L.Callback], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        construct()


class NeverTrained(UserModule):
    """Fails if a training step is reached."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        raise AssertionError("the error came after the sanity check")


def fit(folder: Path, module: UserModule, data: Any, *monitors: L.Callback) -> None:
    """A fit that must fail in its sanity check, and leave nothing on the module."""
    with pytest.raises(LitcamError) as error:
        make_trainer(folder, monitors).fit(module, data, data)
    assert_left_alone(module)
    raise error.value


@pytest.mark.parametrize(("regions", "key"), [("boxes", "boxes"), ("masks", "mask")])
def test_batches_without_regions_are_refused_by_name(tmp_path: Path, regions: str, key: str) -> None:
    with pytest.raises(InputError, match=f"compares with {regions}, but the batches have no '{key}'"):
        fit(tmp_path, NeverTrained(), loader(pairs=True), LocalizationMonitor(regions=regions))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(4, 3, 64, 64), "The validation batch is a Tensor; the callbacks need a dict"),
        ({"pixels": torch.zeros(4, 3, 64, 64)}, "The validation batch is a dict; the callbacks need a dict"),
        ([torch.zeros(4, 3, 64, 64)], "The validation batch is a list"),
        (
            [torch.zeros(4, 3, 64, 64), torch.zeros(4, 10)],
            r"label has to be class indices \[B\] or multi-hot bool \[B, C\], not torch.float32",
        ),
        ([torch.zeros(4, 3, 64, 64), torch.zeros(4, 10).long()], r"label has to be class indices \[B\]"),
        (
            [torch.zeros(4, 3, 64, 64), ["cat"] * 4],
            r"label has to be class indices \[B\] or multi-hot bool \[B, C\], not list",
        ),
    ],
)
def test_batches_of_another_form_are_refused(tmp_path: Path, batch: Any, message: str) -> None:
    class Anything(NeverTrained):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(torch.zeros(4, 3, 64, 64))

    class Batches:
        def __iter__(self) -> Any:
            return iter([batch])

    with pytest.raises(InputError, match=message):
        fit(tmp_path, Anything(), Batches(), HeatmapLogger())


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    class Lenient(NeverTrained):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            self(batch["image"])

    with pytest.raises(InputError, match="but the model has 3 classes: 0 to 2"):
        fit(tmp_path, Lenient(tiny_net(3)), loader(), LocalizationMonitor())


class Convolutions(nn.Module):
    """A small CNN."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


def small_swin() -> nn.Module:
    sizes = {"img_size": 64, "embed_dim": 12, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
    return timm.create_model("swin_tiny_patch4_window7_224", num_classes=10, **sizes)


def small_cait() -> nn.Module:
    return timm.create_model("cait_xxs24_224", num_classes=10, img_size=64, embed_dim=24, depth=2, num_heads=2)


class Unfused(nn.Module):
    """A Vision Transformer whose attention was built without torch's function."""

    def __init__(self) -> None:
        super().__init__()
        self.net = tiny_net()
        for block in self.net.blocks:
            block.attn.fused_attn = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.net(images)


@pytest.mark.parametrize("monitor", MONITORS)
@pytest.mark.parametrize("net", [Convolutions, small_swin, small_cait, Unfused])
def test_a_model_without_global_attention_is_refused_in_the_sanity_check_with_what_is_supported(
    tmp_path: Path, net: Callable[[], nn.Module], monitor: Any
) -> None:
    with pytest.raises(UnsupportedModelError, match="supported are timm's vit, deit") as error:
        fit(tmp_path, NeverTrained(net()), loader(), monitor())
    assert type(net()).__name__ in str(error.value) or "NeverTrained" in str(error.value) or net is Unfused


def test_a_module_without_forward_around_a_net_without_head_is_refused(tmp_path: Path) -> None:
    class OnlySteps(NeverTrained):
        forward = L.LightningModule.forward

        def __init__(self) -> None:
            super().__init__(tiny_net(0))
            self.head = nn.Linear(48, 10)

        def logits(self, images: torch.Tensor) -> torch.Tensor:
            return self.head(self.net(images))

    with pytest.raises(UnsupportedModelError, match=r"OnlySteps has no forward.*give the module a forward"):
        fit(tmp_path, OnlySteps(), loader(), HeatmapLogger())


@pytest.mark.parametrize("size", [48, 96])
def test_images_of_a_size_that_the_net_does_not_take_are_refused_with_both_sizes(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputError, match=f"images are {size} by {size} pixels, but the net takes 64 by 64"):
        fit(tmp_path, NeverTrained(), loader(size=size), HeatmapLogger())


def test_masks_of_another_size_than_the_images_are_refused(tmp_path: Path) -> None:
    class Halved(Scenes):
        def __getitem__(self, index: int) -> Any:
            sample = super().__getitem__(index)
            return {**sample, "mask": sample["mask"][::2, ::2]}

    data = DataLoader(Halved(), 4, collate_fn=collate)
    with pytest.raises(InputError, match=r"\[4, 64, 64\].*\[4, 32, 32\]"):
        fit(tmp_path, NeverTrained(), data, LocalizationMonitor(regions="masks"))


@pytest.mark.parametrize("kind", MONITORS)
def test_two_monitors_that_would_log_under_the_same_names_are_refused(tmp_path: Path, kind: Any) -> None:
    with pytest.raises(InputError, match=f"Two {kind.__name__}s would log under the same names, val/agcam/"):
        make_trainer(tmp_path, [kind(), kind(target="predicted")]).fit(tiny_classifier(), digits())


def test_monitors_that_log_under_other_names_stand_side_by_side(tmp_path: Path) -> None:
    monitors = [kind(explainer) for kind in MONITORS for explainer in ("agcam", "center")]
    make_trainer(tmp_path, [*monitors, LocalizationMonitor(regions="masks")]).fit(tiny_classifier(), digits())


def test_monitors_watch_a_users_model_with_nan_logits_on_and_log_no_number_made_of_them(tmp_path: Path) -> None:
    module = UserModule(tiny_net())
    nn.init.constant_(module.net.norm.weight, torch.nan)
    trainer = make_trainer(tmp_path, [PerturbationMonitor("center"), RelianceMonitor()])
    trainer.validate(module, loader(), verbose=False)
    scores = {name: value for name, value in logged(trainer).items() if name.startswith("val/")}
    counts = {name for name in scores if "num_" in name or name.endswith(("degenerate", "left_out"))}
    assert scores.keys() - counts
    assert {name: scores[name] for name in scores.keys() - counts if scores[name] == scores[name]} == {}
