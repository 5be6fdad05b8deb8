"""Layer-wise relevance propagation through the layers of a Transformer: one rule, one function.

The rules are those of Chefer, Gur & Wolf (CVPR 2021), sections 3.1 and 3.2, as their code applies them. A rule takes
the relevance of a layer's output and gives that of its inputs. Relevance has K classes in front of the batch,
[K, B, …]; everything else is shared by the classes. Activations, norms, softmax and dropout have no function here:
relevance passes through them as it is.

Knows no model: which layer follows which is the caller's affair.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

EPSILON = 1e-9  # the authors' guard against small denominators
_ROUNDINGS = 16  # of a sum of terms that cancel each other exactly, in machine epsilons of their magnitude


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """numerator/(denominator + ε), ε = 1e-9; 0 where the denominator, or with ε added, is 0."""
    guarded = denominator + EPSILON
    guarded.masked_fill_((denominator == 0) | (guarded == 0), torch.inf)
    return numerator / guarded


def share_linear(x: Tensor, weight: Tensor, product: Tensor, relevance: Tensor) -> Tensor:
    """Linear layer, z⁺ rule (section 3.1): R_x = x⁺⊙(S·W⁺) + x⁻⊙(S·W⁻) with S = R/Z, Z = x⁺W⁺ᵀ + x⁻W⁻ᵀ.

    ()⁻ keeps the negative part, so that every term of Z is a positive x·w. Because xw + |xw| = 2(x⁺w⁺ + x⁻w⁻), three
    matrix products do the work of these four: Z = ½(xWᵀ + |x||W|ᵀ), where xWᵀ is known, and
    R_x = ½(x⊙(S·W) + |x|⊙(S·|W|)). The bias takes no relevance. An output without a positive term (Z within rounding of
    0) loses its relevance; all others keep theirs.

    Args:
        x: [B, …, I], the input.
        weight: [O, I].
        product: [B, …, O], the output without its bias, xWᵀ.
        relevance: [K, B, …, O], of the output.

    Returns:
        [K, B, …, I], relevance of the input.
    """
    absolute, absolute_weight = x.abs(), weight.abs()
    positive = F.linear(absolute, absolute_weight)
    rounding = positive * (_ROUNDINGS * torch.finfo(positive.dtype).eps)
    positive += product  # 2Z
    positive.masked_fill_(positive <= rounding, torch.inf)
    share = relevance / positive.add_(2 * EPSILON)  # ½S
    return (share @ weight).mul_(x).addcmul_(share @ absolute_weight, absolute)


def share_product(left: Tensor, right: Tensor, product: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Product of two matrices that both depend on the input: half of the relevance to each, by input times gradient.

    With S = R/Z, Z = left·right: R_left = ½ left⊙(S·rightᵀ) and R_right = ½ right⊙(leftᵀ·S) (section 3.2, where
    the authors' code halves in place of normalising). Where Z is 0 the relevance is lost.

    Args:
        left: [B, …, R, M]
        right: [B, …, M, C]
        product: [B, …, R, C]
        relevance: [K, B, …, R, C], of the product.

    Returns:
        [K, B, …, R, M] and [K, B, …, M, C], relevance of the two.
    """
    share, half = safe_divide(relevance, product), right / 2
    return (share @ half.transpose(-2, -1)).mul_(left), (left.transpose(-2, -1) @ share).mul_(half)


def share_sum(a: Tensor, b: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of two tensors, such as a skip connection and its branch: to each by its contribution (section 3.2).

    R_a = a⊙R/(a + b), R_b likewise; then both are scaled so that their totals stand as |ΣR_a| : |ΣR_b| and add up to
    ΣR, each image for itself. A summand whose relevance totals 0 gets none. Computed in the summands' precision.

    Args:
        a: [B, …]
        b: [B, …]
        relevance: [K, B, …], of a + b.

    Returns:
        Relevance of a and of b, each [K, B, …].
    """
    share = safe_divide(relevance, a + b)
    of_a, of_b = share * a, share.mul_(b)
    rest = tuple(range(2, relevance.ndim))  # all but classes and images
    total, total_a, total_b = (part.sum(rest, keepdim=True) for part in (relevance, of_a, of_b))
    per_unit = safe_divide(total, total_a.abs() + total_b.abs())
    return (
        of_a.mul_(safe_divide(total_a.abs() * per_unit, total_a)).to(relevance.dtype),
        of_b.mul_(safe_divide(total_b.abs() * per_unit, total_b)).to(relevance.dtype),
    )


def share_mean(tokens: Tensor, weights: Tensor, relevance: Tensor) -> Tensor:
    """Weighted mean of T tokens, a linear layer: to each by its contribution, R_t = w_t·x_t ⊙ R/mean.

    The papers' models read a class token, which gets all of it; this is the input-times-gradient rule of the authors'
    pooling layers.

    Args:
        tokens: [B, T, D]
        weights: [T], which sum to one.
        relevance: [K, B, D], of the mean.

    Returns:
        [K, B, T, D], relevance of the tokens; 0 where the mean is 0.
    """
    if int(weights.count_nonzero()) == 1:  # no mean at all
        return (weights != 0).to(tokens)[:, None] * relevance[:, :, None]
    share = safe_divide(relevance, weights @ tokens)
    return share[:, :, None] * (weights[:, None] * tokens)
