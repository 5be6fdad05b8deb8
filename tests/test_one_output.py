"""Heads of one output: two classes by the sigmoid, or, declared, the value of a regression."""

import pickle
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import litcam
from litcam.errors import InputError
from litcam.logits import class_scores, is_regression, num_targets, predicted_classes, probabilities

Z = torch.tensor([[-2.0], [0.0], [0.5], [30.0]])


class Inside(nn.Module):
    """A model with a net in it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.net(images)
        return output


def test_one_output_has_the_probabilities_of_the_two_logits_0_and_z() -> None:
    torch.testing.assert_close(probabilities(Z, False), torch.cat([0 * Z, Z], 1).softmax(1))
    assert class_scores(Z, False).tolist() == torch.cat([-Z, Z], 1).tolist()
    assert predicted_classes(Z, False).tolist() == [0, 0, 1, 1]
    assert num_targets(Z, False) == 2


def test_a_regression_has_one_target_the_value() -> None:
    assert class_scores(Z, True).tolist() == probabilities(Z, True).tolist() == Z.tolist()
    assert predicted_classes(Z, True).tolist() == [0, 0, 0, 0]
    assert num_targets(Z, True) == 1


def test_several_outputs_are_as_they_were() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(class_scores(logits, False), logits)
    assert torch.equal(probabilities(logits, False), logits.softmax(1))
    assert torch.equal(probabilities(logits, False, multi_label=True), logits.sigmoid())
    assert torch.equal(predicted_classes(logits, False), logits.argmax(1))
    assert num_targets(logits, False) == 3


@pytest.mark.parametrize("function", [num_targets, class_scores, probabilities, predicted_classes])
def test_a_regression_of_several_outputs_is_refused(function: object) -> None:
    with pytest.raises(InputError, match="declared a regression, but has 2 outputs"):
        function(torch.zeros(3, 2), True)  # type: ignore[operator]


@pytest.mark.parametrize("regression", [False, True])
def test_several_labels_by_one_output_are_refused(regression: bool) -> None:
    with pytest.raises(InputError, match="multi_label is for a model of several outputs"):
        probabilities(Z, regression, multi_label=True)


def test_the_gradients_of_both_classes_reach_the_output() -> None:
    """Wherever they are asked for: maps are made without gradients but for these."""
    z = Z.clone().requires_grad_()
    for without in (torch.no_grad, torch.inference_mode):
        with without():
            scores, shares = class_scores(z, False), probabilities(z, False)
        for k, sign in enumerate((-1, 1)):
            (of_score,) = torch.autograd.grad(scores[:, k].sum(), z, retain_graph=True)
            (of_share,) = torch.autograd.grad(shares[:, k].sum(), z, retain_graph=True)
            assert torch.equal(of_score, torch.full_like(Z, sign))
            torch.testing.assert_close(of_share, sign * (Z.sigmoid() * (-Z).sigmoid()))


def test_a_declaration_is_found_wherever_it_was_made() -> None:
    net = nn.Linear(2, 1)
    model = Inside(net)
    assert not is_regression(model)
    assert litcam.declare_regression(net) is net
    compiled = torch.compile(net)
    for each in (net, model, deepcopy(model), pickle.loads(pickle.dumps(model)), nn.DataParallel(model)):
        assert is_regression(each)
        assert is_regression(each.forward)
    assert is_regression(compiled)
    assert is_regression(Inside(compiled))
    assert is_regression(torch.compile(Inside(compiled)))
    assert not is_regression(nn.Linear(2, 1))


def test_a_compiled_module_and_a_function_can_be_declared() -> None:
    net = nn.Linear(2, 1)
    litcam.declare_regression(torch.compile(net))
    assert is_regression(torch.compile(Inside(net)))

    def function(images: Tensor) -> Tensor:
        return images.mean((1, 2, 3))[:, None]

    assert not is_regression(function)
    assert is_regression(litcam.declare_regression(function))
    for nothing in (net.forward, "net", None):
        with pytest.raises(InputError, match="cannot be declared a regression; declare the module"):
            litcam.declare_regression(nothing)  # type: ignore[type-var]
