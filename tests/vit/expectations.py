"""The right maps of a structure: from its equal net, from the oracles on its reference net, or from its pixels."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any, cast

import torch
from structures import CONTROLS, METHODS, PIXELS, Structure
from torch import Tensor, nn

import frontier_oracles
import gradient_free_oracles
import litcam
import oracles
import relevance_oracle
from litcam.errors import LitcamError
from litcam.explainers import Explainer, Explanation
from oracles import NoMap

Oracle = Callable[[Any, Tensor, int], Tensor]


def explain(method: str, net: nn.Module, images: Tensor, targets: Tensor | None) -> Explanation:
    """What litcam says."""
    return create(method, net)(images, targets)


def create(method: str, net: nn.Module) -> Explainer:
    """A method with its options."""
    name, options = METHODS[method]
    return litcam.create_explainer(name, net, **options)


# ---------------------------------------------------------------------------------------------------------------------
# Pixels: of any root
# ---------------------------------------------------------------------------------------------------------------------


def saliency(root: nn.Module, image: Tensor, target: int) -> Tensor:
    """Simonyan, Vedaldi & Zisserman 2014."""
    leaf = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(root(leaf[None])[0, target], leaf)
    return gradient.abs().amax(0)


def integrated_gradients(root: nn.Module, image: Tensor, target: int) -> Tensor:
    """Captum's own, summed over the channels."""
    from captum.attr import IntegratedGradients

    return IntegratedGradients(root).attribute(image[None], target=target, n_steps=4)[0].sum(0).float()


@cache
def masks_of_rise(height: int, width: int) -> Tensor:
    """RISE's random masks [N, 1, H, W], drawn as the oracle draws them: what it makes of one mask and f = 1."""
    options = {k: v for k, v in METHODS["rise"][1].items() if k != "batch_size"}
    seen: list[Tensor] = []

    def keep(images: Tensor) -> Tensor:
        seen.append(images[0, :1])
        return torch.zeros(1, 1)

    gradient_free_oracles.rise(cast(nn.Module, keep), torch.ones(1, height, width), 0, **options)
    return torch.stack(seen)


@torch.no_grad()
def rise(root: nn.Module, image: Tensor) -> Tensor:
    """Petsiuk, Das & Saenko, BMVC 2018, equation 6, of every class."""
    masks = masks_of_rise(*image.shape[-2:])
    probabilities = root(image * masks).softmax(1)  # [N, C]
    return torch.einsum("nc,nhw->chw", probabilities, masks[:, 0]) / (0.5 * len(masks))


OF_PIXELS: dict[str, Oracle] = {"saliency": saliency, "captum": integrated_gradients}


# ---------------------------------------------------------------------------------------------------------------------
# Hooks: what the last attention reads, in any root around a timm net
# ---------------------------------------------------------------------------------------------------------------------


@contextmanager
def hooked(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """The module's output is changed."""
    handle = module.register_forward_hook(lambda _module, _args, output: change(output))
    try:
        yield
    finally:
        handle.remove()


def last_norm(net: Any) -> nn.Module:
    """The norm before the last attention."""
    block = net.blocks[-1]
    return block.norm1 if hasattr(block, "norm1") else block.in_norm


def patch_features(root: nn.Module, net: Any, image: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """F and ∂y_c/∂F, [P, D] both, in double precision."""
    leaves: list[Tensor] = []

    def cut(output: Tensor) -> Tensor:
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    with hooked(last_norm(net), cut):
        (gradient,) = torch.autograd.grad(root(image[None])[0, target], leaves)
    prefix = net.num_prefix_tokens
    return leaves[0][0, prefix:].detach().double(), gradient[0, prefix:].double()


def on_grid(net: Any, values: Tensor) -> Tensor:
    """Values [..., P] as maps."""
    return values.reshape(*values.shape[:-1], *net.patch_embed.grid_size)


def gradcam(root: nn.Module, net: Any, image: Tensor, target: int) -> Tensor:
    """Selvaraju et al., ICCV 2017."""
    features, gradient = patch_features(root, net, image, target)
    return on_grid(net, (features @ gradient.mean(0)).clamp(min=0))


def gradcam_plusplus(root: nn.Module, net: Any, image: Tensor, target: int) -> Tensor:
    """Chattopadhay et al., WACV 2018."""
    features, g = patch_features(root, net, image, target)
    below = 2 * g**2 + features.sum(0) * g**3
    alpha = torch.where(below == 0, 0.0, g**2 / torch.where(below == 0, 1.0, below))
    return on_grid(net, (features @ (alpha * g.clamp(min=0)).sum(0)).clamp(min=0))


def hirescam(root: nn.Module, net: Any, image: Tensor, target: int) -> Tensor:
    """Draelos & Carin 2020."""
    features, gradient = patch_features(root, net, image, target)
    return on_grid(net, (features * gradient).sum(1))


@torch.no_grad()
def reciprocam(root: nn.Module, net: Any, image: Tensor, logit: bool = False) -> Tensor:
    """Byun & Lee 2023, of every class; with `logit` the prefix tokens are masked too."""
    height, width = net.patch_embed.grid_size
    masks = torch.full((height * width, net.num_prefix_tokens + height * width, 1), 0.0 if logit else 1.0)
    for place in range(height * width):
        around = oracles._patch_weights(place // width, place % width, height, width, "gaussian")
        masks[place, net.num_prefix_tokens :, 0] = around.flatten()
    with hooked(last_norm(net), lambda output: output * masks.to(output)):
        logits = root(image.expand(len(masks), -1, -1, -1))
    return on_grid(net, (logits if logit else logits.softmax(1)).T)


interpolation = cache(gradient_free_oracles._interpolation)


@torch.no_grad()
def score_cam(root: nn.Module, net: Any, image: Tensor) -> Tensor:
    """Wang et al., CVPRW 2020, of every class."""
    found: list[Tensor] = []
    with hooked(last_norm(net), lambda output: found.append(output) or output):
        root(image[None])
    features = found[0][0, net.num_prefix_tokens :]  # [P, D]
    channels = features.T.reshape(-1, *net.patch_embed.grid_size)
    rows, columns = (
        interpolation(*sides).to(features) for sides in zip(channels.shape[1:], image.shape[1:], strict=True)
    )
    masks = torch.stack([oracles.minmax(rows @ channel @ columns.T) for channel in channels])
    alphas = root(image * masks[:, None]).softmax(0)  # [D, C]
    return on_grid(net, (features @ alphas).clamp(min=0).T)


@torch.no_grad()
def token_dropping(root: nn.Module, net: Any, image: Tensor) -> Tensor:
    """p_c(x) less p_c of the tokens without one, of every class."""
    count = net.num_prefix_tokens + net.patch_embed.num_patches
    kept = [[i for i in range(count) if i != place] for place in range(net.num_prefix_tokens, count)]
    with hooked(net.norm_pre, lambda x: torch.stack([x[i, row] for i, row in enumerate(kept)])):
        without = root(image.expand(len(kept), -1, -1, -1)).softmax(1)
    return on_grid(net, (root(image[None]).softmax(1) - without).T)


BY_HOOKS: dict[str, Callable[..., Tensor]] = {
    "gradcam": gradcam,
    "gradcam_plusplus": gradcam_plusplus,
    "hirescam": hirescam,
}
EVERY_CLASS: dict[str, Callable[..., Tensor]] = {
    "reciprocam": reciprocam,
    "reciprocam:logit": partial(reciprocam, logit=True),
    "score_cam": score_cam,
    "token_dropping": token_dropping,
}


# ---------------------------------------------------------------------------------------------------------------------
# Oracles: of a reference net
# ---------------------------------------------------------------------------------------------------------------------


def balanced(oracle: Oracle, net: Any, image: Tensor, target: int, **options: Any) -> Tensor:
    """An oracle of ordinary gradients that gets balanced ones."""
    ordinary = oracles.forward
    oracles.forward = frontier_oracles.balanced_trace
    try:
        return oracle(net, image, target, **options)
    finally:
        oracles.forward = ordinary


def libragrad(net: Any, image: Tensor, target: int, form: str = "fullgrad_plus", score: str = "probability") -> Tensor:
    """Input×gradient of the first block or of all, with the biases' terms or without."""
    products, _, _ = frontier_oracles.balanced(net, image, target, score)
    tokens = torch.stack(products).sum(0) if form == "fullgrad_plus" else products[0]
    if form != "input_gradient":
        tokens = tokens + frontier_oracles.bias_tokens(net, image, target, score)
    return frontier_oracles.grid(net, tokens)


def legrad_of_class_token(net: Any, image: Tensor, target: int, layers: int) -> Tensor:
    """Defined where the head reads prefix tokens alone."""
    count = net.num_prefix_tokens + net.patch_embed.num_patches
    if oracles.readout_weights(net, count)[:, net.num_prefix_tokens :].any():
        raise NoMap
    return frontier_oracles.legrad(net, image, target, layers=layers, readout="class_token")


def cam(net: Any, image: Tensor, target: int) -> Tensor:
    """Defined for average-pooled nets."""
    if hasattr(net, "readout") or net.global_pool != "avg":
        raise NoMap
    return gradient_free_oracles.cam(net, image, target)


def relevance(net: Any, image: Tensor, target: int, start_layer: int = 0) -> Tensor:
    """Defined for means of tokens and blocks one after the other."""
    if net.global_pool in ("max", "avgmax", "map") or any(oracles.is_parallel(block) for block in net.blocks):
        raise NoMap
    return relevance_oracle.relevance(net, image, target, start_layer)


def of_tokens(net: Any, tokens: Tensor) -> Tensor:
    """Evidence on the grid."""
    return frontier_oracles.grid(net, tokens)


ORACLES: dict[str, Oracle] = {
    "agcam": oracles.agcam,
    "agcam:full": partial(oracles.agcam, gradient="full"),
    "agcam:max": partial(oracles.agcam, head_fusion="max", layer_fusion="mean"),
    "agcam:balanced": partial(balanced, oracles.agcam),
    "attention_flow": gradient_free_oracles.attention_flow,
    "attention_gradcam": oracles.attention_gradcam,
    "cam": cam,
    "evidence": lambda net, image, target: of_tokens(net, frontier_oracles.evidence(net, image, target)[0]),
    "generic_attention": oracles.generic_attention,
    "generic_attention:balanced": partial(balanced, oracles.generic_attention),
    "gradcam": oracles.gradcam,
    "gradcam_plusplus": oracles.gradcam_plusplus,
    "hirescam": oracles.hirescam,
    "legrad": partial(frontier_oracles.legrad, layers=2),
    "legrad:class_token": partial(legrad_of_class_token, layers=3),
    "libragrad": libragrad,
    "libragrad:fullgrad": partial(libragrad, form="fullgrad", score="logit"),
    "libragrad:input": partial(libragrad, form="input_gradient"),
    "raw_attention": oracles.raw_attention,
    "raw_attention:sigmoid": partial(oracles.raw_attention, normalize="sigmoid"),
    "raw_attention:first": partial(oracles.raw_attention, layer=0),
    "raw_attention:last": partial(oracles.raw_attention, layer=-1),
    "reciprocam": oracles.reciprocam,
    "reciprocam:block": partial(oracles.reciprocam, kernel="dirac", feature="block"),
    "reciprocam:logit": partial(oracles.reciprocam, score="logit", keep_class_token=False),
    "relevance": relevance,
    "relevance:1": partial(relevance, start_layer=1),
    "rollout": oracles.rollout,
    "rollout:1": partial(oracles.rollout, start_layer=1),
    "saliency:balanced": partial(balanced, oracles.saliency),
    "saw": partial(oracles.saw, scaled=False),
    "tokentm": frontier_oracles.tokentm,
}
PRODUCTS = {"rollout", "rollout:1", "generic_attention", "generic_attention:balanced", "tokentm", "attention_flow"} | {
    "relevance",
    "relevance:1",
    "legrad",
    "legrad:class_token",
}  # no product over the layers, and no score of a layer, where the head reads two of them
CLASS_BLIND = {name for name in ORACLES if name.startswith(("raw_attention", "rollout", "attention_flow"))}


def by_oracle(oracle: Oracle, net: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Maps [B, K, ...] of one image and class after the other."""
    rows = [
        torch.stack([oracle(net, image, target).detach().float() for target in row])
        for image, row in zip(images, targets.tolist(), strict=True)
    ]
    return torch.stack(rows)


def of_every_class(oracle: Callable[[Tensor], Tensor], images: Tensor, targets: Tensor) -> Tensor:
    """Maps [B, K, ...] of one image after the other."""
    return torch.stack([oracle(image)[row].float() for image, row in zip(images, targets, strict=True)])


# ---------------------------------------------------------------------------------------------------------------------
# Of a structure
# ---------------------------------------------------------------------------------------------------------------------

kept: dict[tuple[Any, ...], Tensor | None] = {}


def expected(structure: Structure, root: nn.Module, method: str, images: Tensor, targets: Tensor) -> Tensor | None:
    """The right maps [B, K, ...], or None where there is none and the method has to refuse."""
    if method in PIXELS:
        model = root if structure.pixels is None else structure.pixels()
        if method == "rise":
            return of_every_class(partial(rise, model), images, targets)
        return by_oracle(OF_PIXELS[method], model, images, targets)
    if structure.inner is not None and method in EVERY_CLASS:
        return of_every_class(partial(EVERY_CLASS[method], root, structure.inner(root)), images, targets)
    if structure.inner is not None and method in BY_HOOKS:
        oracle = partial(BY_HOOKS[method], root, structure.inner(root))
        return by_oracle(lambda _, image, target: oracle(image, target), root, images, targets)
    if structure.equal is not None:
        key = (structure.equal, structure.to_net, method, tuple(images.shape), tuple(targets.flatten().tolist()))
        if key not in kept:
            kept[key] = by_equal_net(structure.equal(), method, structure.to_net(images), targets)
        found = kept[key]
        return None if found is None else structure.to_root(found)
    if structure.reference is not None:
        return by_reference(structure.reference, method, images, targets)
    return None


def by_equal_net(net: nn.Module, method: str, images: Tensor, targets: Tensor) -> Tensor | None:
    """What litcam says of the stock net; its maps are compared with the oracles elsewhere."""
    try:
        return explain(method, net, images, targets).heatmaps
    except LitcamError:
        return None


@cache
def doubled(make: Callable[[], nn.Module]) -> nn.Module:
    """A reference net in double precision."""
    return copy.deepcopy(make()).double()


def by_reference(make: Callable[[], nn.Module], method: str, images: Tensor, targets: Tensor) -> Tensor | None:
    """What the oracles say of the reference net, in double precision."""
    if method in CONTROLS:
        return by_equal_net(make(), method, images, targets)
    key = (make, method, tuple(targets.flatten().tolist()))
    if key not in kept:
        blind = method in CLASS_BLIND
        if method in PRODUCTS and hasattr(make(), "taps"):
            return None
        net, images = doubled(make), images.double()
        if method in ("score_cam", "token_dropping"):
            return of_every_class(partial(EVERY_CLASS[method], net, net), images, targets)
        try:
            found = by_oracle(ORACLES[method], net, images, targets[:, :1] if blind else targets)
            kept[key] = found.expand(-1, targets.shape[1], -1, -1)
        except NoMap:
            kept[key] = None
    return kept[key]
