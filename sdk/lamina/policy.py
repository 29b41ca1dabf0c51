"""When requests leave: the result of learning, and the input of serving."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lamina.criterion import Criterion, check_temperature
from lamina.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


@dataclass(frozen=True)
class Policy:
    """When a request leaves at which exit.

    Attributes:
        criterion: the measure of confidence.
        temperatures: one per exit, including the last.
        thresholds: one per exit but the last, where all rows leave; None
            if no row leaves.
    """

    criterion: Criterion
    temperatures: tuple[float, ...]
    thresholds: tuple[float | None, ...]

    def __post_init__(self) -> None:
        if len(self.temperatures) != len(self.thresholds) + 1:
            raise ArgumentError(
                f"{len(self.temperatures)} temperatures and {len(self.thresholds)} thresholds: "
                "give a temperature for each exit, a threshold for each but the last"
            )
        for temperature in self.temperatures:
            check_temperature(temperature)
        for threshold in self.thresholds:
            check_threshold(threshold)

    def decide(self, logits: Sequence[Tensor]) -> Tensor:
        """At which exit each row leaves.

        Args:
            logits: rows x classes of each exit.

        Returns:
            The index of an exit per row, on the CPU.

        Raises:
            ArgumentError: if the number of exits does not match.
        """
        if len(logits) != len(self.temperatures):
            raise ArgumentError(
                f"{len(logits)} exits, but the policy is for {len(self.temperatures)}"
            )
        taken = torch.full((len(logits[0]),), len(logits) - 1)
        # From the last side exit to the first, so that the first possible one
        # wins.
        for index in reversed(range(len(self.thresholds))):
            measured = self.criterion.measure(logits[index], self.temperatures[index])
            taken[self.criterion.leaves(measured, self.thresholds[index]).cpu()] = index
        return taken


def check_threshold(threshold: float | None) -> None:
    """Refuses values outside the range of both criteria.

    Raises:
        ArgumentError: with the value.
    """
    if threshold is not None and not (math.isfinite(threshold) and 0.0 <= threshold <= 1.0):
        raise ArgumentError(f"a threshold must be within 0..=1, not {threshold}")
