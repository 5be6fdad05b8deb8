"""Token dropping: how far the class falls when a token is left out."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from litcam.errors import UnsupportedModelError, brief, check_at_least, check_choice
from litcam.explainers.base import Explainer, register
from litcam.vit.context import eager
from litcam.vit.model import ViT
from litcam.vit.precision import in_precision_of
from litcam.vit.sdpa import AttentionArguments, AttentionMode
from litcam.vit.threads import in_this_thread
from litcam.vit.trace import AttentionTrace


@register("token_dropping")
class TokenDropping(Explainer):
    """Token dropping: p_c(x) − p_c(x without token j), the token left out after the position embedding; signed.

    Nothing is put in the token's place, and nothing is assumed about the model: a reference that shows what gradients
    miss. One forward per patch. A token is left out where tokens meet, which is the same as taking it out of the
    sequence and leaves all other positions as they are: no attention has it among its keys, and the head does not get
    it. All classes come from the same forwards.

    Args:
        net: the model.
        score: the softmax ``"probability"`` or the raw ``"logit"`` of the class.
        batch_size: images in one forward; only memory and speed depend on it.

    Raises:
        InputError: for another score, or a batch size below 1.
        UnsupportedModelError: when called, for weights in half precision, or a model that wants all its tokens.
    """

    small_differences = True

    def __init__(
        self, net: nn.Module, score: Literal["probability", "logit"] = "probability", batch_size: int = 32
    ) -> None:
        super().__init__(net)
        check_choice("score", score, ("probability", "logit"))
        check_at_least("batch_size", batch_size)
        self.score = score
        self.batch_size = batch_size

    def heatmaps(self, trace: AttentionTrace, targets: Tensor) -> Tensor:
        trace.check_tail()
        drops = [self._drops(trace, *pair) for pair in zip(trace.images, targets, strict=True)]
        return torch.stack(drops).reshape(*targets.shape, *trace.grid)

    def _drops(self, trace: AttentionTrace, image: Tensor, classes: Tensor) -> Tensor:
        """Of one image [3, H, W] and the classes [K]: [K, P]."""
        prefix = self.vit.num_prefix_tokens
        patches = torch.arange(prefix, trace.last_input.tokens.shape[1], device=image.device)
        # The whole image once more, by itself: a rounding of the batch's forward would shift the map.
        whole = self._scores(trace, image, None)[:, classes]
        left = [self._scores(trace, image, some)[:, classes] for some in patches.split(self.batch_size)]
        return (whole - torch.cat(left)).T

    def _scores(self, trace: AttentionTrace, image: Tensor, left_out: Tensor | None) -> Tensor:
        """Scores [n, C] of an image without each of n tokens, in full precision: drops are small differences."""
        with ExitStack() as context:
            context.enter_context(torch.autocast(image.device.type, enabled=False))
            context.enter_context(eager())
            images = in_precision_of(trace.module, image[None])
            if left_out is not None:
                images = images.expand(len(left_out), -1, -1, -1)
                tokens = torch.arange(trace.last_input.tokens.shape[1], device=image.device)
                context.enter_context(_without(self.vit, tokens != left_out[:, None]))
            try:
                logits = trace.module(images)
            except RuntimeError as error:  # of shapes that do not fit
                raise UnsupportedModelError(
                    f"token_dropping: {type(trace.module).__name__} does not run with tokens left out ({brief(error)})."
                ) from error
        score = trace.scores if self.score == "logit" else trace.probabilities
        return score(logits.double())


@contextmanager
def _without(vit: ViT, kept: Tensor) -> Iterator[None]:
    """Leave all but the kept tokens [n, N] of n images out of a forward; as many of each image."""

    def attend(arguments: AttentionArguments, attend: Callable[[], Tensor]) -> Tensor:
        if not arguments.is_self_attention:  # an attention pool gets no more than the rest
            return attend()
        keys, mask = kept[:, None, None], arguments.attn_mask
        if mask is not None:
            keys = mask & keys if mask.dtype == torch.bool else torch.where(keys, mask, float("-inf"))
        return replace(arguments, attn_mask=keys).attend()

    hook = vit.blocks[-1].register_forward_hook(
        in_this_thread(lambda block, arguments, output: output[kept].reshape(len(kept), -1, output.shape[-1]))
    )
    try:
        with AttentionMode(attend):
            yield
    finally:
        hook.remove()
