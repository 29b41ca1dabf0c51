"""When an answer is confident enough to leave at an exit."""

from __future__ import annotations

import math
from enum import StrEnum

import torch
from torch import Tensor

from lamina.errors import ArgumentError


class Criterion(StrEnum):
    """How confidence at an exit is measured.

    Attributes:
        CONFIDENCE: the largest softmax probability, 1/classes..=1; a request
            leaves if it is at least the threshold.
        ENTROPY: the entropy of the softmax divided by that of the uniform
            distribution, 0..=1 (Teerapittayanon et al., BranchyNet, 2016, there
            not normalised); a request leaves if it is at most the threshold.
    """

    CONFIDENCE = "confidence"
    ENTROPY = "entropy"

    def measure(self, logits: Tensor, temperature: float = 1.0) -> Tensor:
        """Measures the confidence of each row, in double precision.

        Args:
            logits: rows x classes, at least two classes.
            temperature: divides the logits before the softmax, above 0.

        Returns:
            One value per row.

        Raises:
            ArgumentError: if shape or temperature are invalid.
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
            measured: the result of `measure`.
            threshold: None if no row leaves.
        """
        if threshold is None:
            return torch.zeros_like(measured, dtype=torch.bool)
        if self is Criterion.CONFIDENCE:
            return measured >= threshold
        return measured <= threshold

    @property
    def surest(self) -> float:
        """The measure of a row without any doubt."""
        return 1.0 if self is Criterion.CONFIDENCE else 0.0

    @property
    def lets_all_leave(self) -> float:
        """The threshold at which every row leaves."""
        return 1.0 - self.surest


def check_logits(logits: Tensor) -> None:
    """Refuses anything but rows x classes.

    Raises:
        ArgumentError: with the shape.
    """
    if logits.dim() != 2 or logits.shape[1] < 2:
        raise ArgumentError(
            f"logits must be rows x classes with two classes or more, not {tuple(logits.shape)}"
        )


def check_temperature(temperature: float) -> None:
    """Refuses anything but a positive number.

    Raises:
        ArgumentError: with the value.
    """
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ArgumentError(f"a temperature must be above 0, not {temperature}")
