"""Temperatures that make an exit's confidence mean what it says.

Temperature scaling after Guo et al., On Calibration of Modern Neural Networks,
2017: one number for each exit, learned on a validation set. It changes no answer,
only how sure the exit is of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.nn.functional import cross_entropy

from lamina.criterion import Criterion, check_logits
from lamina.errors import ArgumentError

if TYPE_CHECKING:
    from torch import Tensor

TEMPERATURES = (0.05, 20.0)
"""Range of temperatures that are considered."""

_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
_STEPS = 60


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the smallest cross-entropy.

    Cross-entropy is convex in 1/temperature, so a golden-section search on the
    logarithm finds the minimum; 60 steps leave an error far below 1e-9.

    Args:
        logits: rows x classes of a validation set that was not trained on.
        labels: class indices, one per row.

    Returns:
        A value within `TEMPERATURES`, at the upper bound if confidence says
            nothing; 1 if the set has no mistake: then every sharper softmax is
            better, and the set cannot tell how sharp.

    Raises:
        ArgumentError: if the shapes do not match.
    """
    check_rows(logits, labels)
    if bool((logits.argmax(dim=1) == labels).all()):
        return 1.0
    exact = logits.double()

    def loss(log_temperature: float) -> float:
        return cross_entropy(exact / math.exp(log_temperature), labels).item()

    low, high = (math.log(t) for t in TEMPERATURES)
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = loss(left), loss(right)
    for _ in range(_STEPS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = loss(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = loss(right)
    return math.exp((low + high) / 2.0)


def expected_calibration_error(
    logits: Tensor, labels: Tensor, temperature: float = 1.0, bins: int = 15
) -> float:
    """Mean distance of confidence and accuracy over bins of equal width, 0..=1.

    Args:
        logits: rows x classes.
        labels: class indices, one for each row.
        temperature: divides the logits.
        bins: 1 or more.

    Raises:
        ArgumentError: if an argument does not fit.
    """
    check_rows(logits, labels)
    if bins < 1:
        raise ArgumentError(f"bins must be 1 or more, not {bins}")
    confidence = Criterion.CONFIDENCE.measure(logits, temperature)
    right = (logits.argmax(dim=1) == labels).double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    gaps = confidence.new_zeros(bins).index_add_(0, place, confidence - right)
    return gaps.abs().sum().item() / len(labels)


def check_rows(logits: Tensor, labels: Tensor) -> None:
    """Refuses logits and labels with different rows.

    Raises:
        ArgumentError: with the shapes.
    """
    check_logits(logits)
    if labels.dim() != 1 or len(labels) != len(logits) or len(labels) == 0:
        raise ArgumentError(
            f"labels must be one class index for each of {len(logits)} rows, "
            f"not of shape {tuple(labels.shape)}"
        )
    if labels.is_floating_point() or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise ArgumentError(f"labels must be class indices within 0..={logits.shape[1] - 1}")
