"""When an answer is sure enough to leave at an exit."""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

from lamina.errors import ArgumentError


class Criterion(StrEnum):
    """How sure an exit is of its answer.

    Attributes:
        CONFIDENCE: the largest softmax probability, 1/classes..=1; a request
            leaves where it is at least the threshold.
        ENTROPY: the entropy of the softmax divided by that of the uniform
            distribution, 0..=1 (Teerapittayanon et al., BranchyNet, 2016, there
            not normalised); a request leaves where it is at most the threshold.
    """

    CONFIDENCE = "confidence"
    ENTROPY = "entropy"

    def measure(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """How sure each row is, in double precision.

        Args:
            logits: rows x classes, at least two classes.
            temperature: divides the logits before the softmax, above 0.

        Returns:
            One value for each row.

        Raises:
            ArgumentError: if shape or temperature do not fit.
        """
        check_logits(logits)
        check_temperature(temperature)
        log_p = torch.log_softmax(logits.double() / temperature, dim=1)
        if self is Criterion.CONFIDENCE:
            return log_p.max(dim=1).values.exp()
        entropy: Tensor = torch.special.entr(log_p.exp()).sum(dim=1)
        return (entropy / math.log(logits.shape[1])).clamp(0.0, 1.0)

    def leaves(self, measured: Tensor, threshold: float | None) -> Tensor:
        """Which rows leave, as booleans.

        Args:
            measured: what `measure` gave.
            threshold: None where no row leaves.
        """
        if threshold is None:
            return torch.zeros_like(measured, dtype=torch.bool)
        if self is Criterion.CONFIDENCE:
            return measured >= threshold
        return measured <= threshold

    @property
    def surest(self) -> float:
        """The measure of a row that leaves no doubt."""
        return 1.0 if self is Criterion.CONFIDENCE else 0.0

    @property
    def lets_all_leave(self) -> float:
        """The threshold at which every row leaves."""
        return 1.0 - self.surest


def check_logits(logits: Tensor) -> None:
    """Refuses what is not rows x classes.

    Raises:
        ArgumentError: with the shape.
    """
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ArgumentError(
            f"logits must be rows x classes with two classes or more, not {tuple(logits.shape)}"
        )


def check_temperature(temperature: float) -> None:
    """Refuses what is no positive number.

    Raises:
        ArgumentError: with the value.
    """
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ArgumentError(f"a temperature must be above 0, not {temperature}")
