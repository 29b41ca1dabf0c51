"""Where requests leave: the outcome of learning, the input of serving."""

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
        criterion: how sureness is measured.
        temperatures: one for each exit, the last one included.
        thresholds: one for each exit but the last, where everyone leaves; None
            where nobody leaves.
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
            The index of an exit for each row, on the CPU.

        Raises:
            ArgumentError: if there are more or fewer exits.
        """
        if len(logits) != len(self.temperatures):
            raise ArgumentError(
                f"{len(logits)} exits, but the policy is for {len(self.temperatures)}"
            )
        taken = torch.full((len(logits[0]),), len(logits) - 1)
        # From the last side exit to the first, so that the first one that a row
        # may take has the last word.
        for index in reversed(range(len(self.thresholds))):
            measured = self.criterion.measure(logits[index], self.temperatures[index])
            taken[self.criterion.leaves(measured, self.thresholds[index]).cpu()] = index
        return taken


def check_threshold(threshold: float | None) -> None:
    """Refuses what is outside the range of both criteria.

    Raises:
        ArgumentError: with the value.
    """
    if threshold is not None and not (math.isfinite(threshold) and 0.0 <= threshold <= 1.0):
        raise ArgumentError(f"a threshold must be within 0..=1, not {threshold}")
