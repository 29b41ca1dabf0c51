"""One loss for all exits."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch.nn.functional import cross_entropy

from lamina.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor


def joint_loss(
    outputs: Sequence[Tensor],
    labels: Tensor,
    weights: Sequence[float] | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
) -> Tensor:
    """The weighted sum of the exits' losses (BranchyNet, 2016, equation 1).

    GoogLeNet (Szegedy et al., 2014) was trained with 0.3, 0.3 and 1.

    Args:
        outputs: logits of each exit, batch x classes.
        labels: class indices, one per row.
        weights: one per exit, not negative, not all zero; 1 each if absent.
        loss: of one exit.

    Returns:
        A scalar.

    Raises:
        ArgumentError: if the weights are invalid.
    """
    if not outputs:
        raise ArgumentError("there is no exit to train")
    chosen = check_weights(weights, len(outputs))
    terms = [w * loss(o, labels) for w, o in zip(chosen, outputs, strict=True) if w > 0.0]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def check_weights(weights: Sequence[float] | None, exits: int) -> Sequence[float]:
    """The effective weights.

    Raises:
        ArgumentError: if they do not match the number of exits.
    """
    if weights is None:
        return [1.0] * exits
    if len(weights) != exits:
        raise ArgumentError(f"{len(weights)} weights for {exits} exits: give one for each exit")
    if any(not math.isfinite(w) or w < 0.0 for w in weights) or not any(weights):
        raise ArgumentError(f"weights must be 0 or more, at least one above 0, not {list(weights)}")
    return weights
