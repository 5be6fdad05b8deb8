"""Boxes of thresholded maps against true boxes, per image and threshold. Knows no explainer and no dataset."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from litcam.errors import InputError
from litcam.metrics.functional.checks import check_maps, check_scaled
from litcam.metrics.functional.components import level_components
from litcam.metrics.functional.thresholds import NUM_THRESHOLDS, reached_thresholds

IOU_LEVELS = (0.3, 0.5, 0.7)  # of MaxBoxAccV2


def box_overlaps(heatmaps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """How well the boxes of a thresholded map meet the true ones, at the thresholds 0, 0.001, …, 0.999.

    For MaxBoxAcc and MaxBoxAccV2 (Choe et al., CVPR 2020, under "Evaluation metrics", and its journal version). At each
    threshold τ the tight boxes of the 8-connected components of map ≥ τ are compared by IoU with each true box of the
    image: once that of the component with most pixels alone (of equally large ones the one that meets a true box best),
    once all, of which the best counts. Where nothing reaches τ, and in an image without true box, the IoU is 0.

    Exact, where the authors' code differs a little: that rounds maps down to 8 bits and takes map > τ·max, so τ = 0 is
    not the whole image; takes the contour that encloses the largest area, and for V2 the contours of holes too; counts
    box ends as inclusive, which makes found boxes one pixel larger except at the border; rounds true boxes down.

    Args:
        heatmaps: [B, H, W] in [0, 1]; rows of a map with NaN mean nothing.
        boxes: [K, 5], the image's index in the batch, then x0, y0, x1, y1 in pixels, ends exclusive.

    Returns:
        The IoU of the largest component's box and the best IoU of all boxes: float64 [B, 1000] each.

    Raises:
        InputError: if shapes, dtypes or ranges are not these.
    """
    check_maps(heatmaps, "heatmaps")
    check_boxes(boxes, len(heatmaps))
    check_scaled(heatmaps)
    levels = reached_thresholds(heatmaps).clamp(max=NUM_THRESHOLDS - 1).cpu().numpy()
    image, corners = boxes[:, 0].long().cpu().numpy(), boxes[:, 1:].double().cpu().numpy()
    overlaps = np.zeros((2, len(levels), NUM_THRESHOLDS))
    for index in range(len(levels)):
        overlaps[:, index] = _overlaps(levels[index], corners[image == index])
    largest, best = torch.from_numpy(overlaps).to(heatmaps.device)
    return largest, best


def check_boxes(boxes: Tensor, count: int) -> None:
    """Raise InputError unless boxes are [K, 5] of images 0 … count − 1, none ending before it begins."""
    if boxes.ndim != 2 or boxes.shape[1] != 5:
        raise InputError(f"boxes have to be [K, 5] (image, x0, y0, x1, y1), not {list(boxes.shape)}.")
    outside = ~torch.isin(boxes[:, 0], torch.arange(count, device=boxes.device).to(boxes.dtype))
    if outside.any():
        raise InputError(f"A box names image {boxes[outside][0, 0].item():g}, but the batch has {count}, from 0.")
    inverted = ~(boxes[:, 3:] >= boxes[:, 1:3]).all(1)
    if inverted.any():
        raise InputError(
            f"A box is {boxes[inverted][0, 1:].tolist()}; it has to be x0, y0, x1, y1, with ends beyond the beginnings."
        )


def _overlaps(levels: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of the largest component, and the best of all, at each threshold: [2, 1000]; of one image."""
    largest, best = np.zeros((2, NUM_THRESHOLDS))
    if len(boxes):
        found = level_components(levels, NUM_THRESHOLDS)
        overlap = np.max([_iou(found.boxes, box) for box in boxes], axis=0)  # [m]
        np.maximum.at(best, found.levels, overlap)
        most = np.zeros(NUM_THRESHOLDS, dtype=np.int64)
        np.maximum.at(most, found.levels, found.areas)
        is_largest = found.areas == most[found.levels]
        np.maximum.at(largest, found.levels[is_largest], overlap[is_largest])
    return np.stack([largest, best])


def _iou(boxes: NDArray[np.int32], box: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of boxes [m, 4] of at least a pixel with one box [4]."""
    left, top, right, bottom = boxes.T.astype(np.float64)
    x0, y0, x1, y1 = box
    shared_width = np.minimum(right, x1) - np.maximum(left, x0)
    shared_height = np.minimum(bottom, y1) - np.maximum(top, y0)
    shared = shared_width.clip(min=0) * shared_height.clip(min=0)
    return np.asarray(shared / ((right - left) * (bottom - top) + (x1 - x0) * (y1 - y0) - shared))
