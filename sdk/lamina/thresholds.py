"""Thresholds learned on a validation set, for a target."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lamina.criterion import Criterion
from lamina.errors import ArgumentError, TargetError
from lamina.policy import Policy
from lamina.scan import Scan, scan, scan_ranked, surest_first

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lamina.evaluation import ExitOutputs

COMBINATIONS = 10_000
"""How many combinations of the earlier exits' thresholds are tried at most."""


def thresholds_for_exit_rates(
    outputs: ExitOutputs,
    rates: float | Sequence[float],
    *,
    criterion: Criterion = Criterion.CONFIDENCE,
    temperatures: Sequence[float] | None = None,
) -> Policy:
    """The strictest thresholds at which enough rows leave.

    Args:
        outputs: of a validation set that was not trained on.
        rates: for each exit but the last: the share of the rows reaching it that
            must leave, 0..=1; one number for all of them, or one each.
        criterion: the measure of confidence.
        temperatures: one per exit; learned on `outputs` if absent.

    Raises:
        ArgumentError: if an argument is invalid.
    """
    temps = _temperatures(outputs, temperatures)
    sides = len(outputs.logits) - 1
    wanted = [rates] * sides if isinstance(rates, int | float) else list(rates)
    if len(wanted) != sides or any(not 0.0 <= r <= 1.0 for r in wanted):
        raise ArgumentError(f"give a rate within 0..=1 for each of {sides} side exits, not {rates}")
    thresholds: list[float | None] = []
    rows = torch.arange(len(outputs.labels))
    for index, rate in enumerate(wanted):
        found = scan(criterion.measure(outputs.logits[index], temps[index])[rows], criterion)
        # 0.3 * 10 is 3.0000000000000004 in binary; that must not become four rows.
        enough = math.ceil(rate * len(rows) - 1e-9)
        step = int(torch.searchsorted(found.counts, enough))
        thresholds.append(found.thresholds[step])
        rows = rows[found.order[int(found.counts[step]) :]].sort().values
    return Policy(criterion, temps, tuple(thresholds))


def thresholds_for_accuracy(
    outputs: ExitOutputs,
    target: float,
    *,
    criterion: Criterion = Criterion.CONFIDENCE,
    costs: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
) -> Policy:
    """The cheapest thresholds with which the exits together reach an accuracy.

    Tries combinations of thresholds that let different rows leave: all of the
    last side exit, and of each earlier one as many as keep the number of
    combinations within `COMBINATIONS` (evenly chosen quantiles if the set has
    more). With one side exit, and with two on up to 9 999 rows, that is all of
    them. The target holds on `outputs`; on other rows it holds only as far as
    `outputs` represent them, so test the result on a third set.

    Args:
        outputs: of a validation set that was not trained on.
        target: share of all rows that must be right at the exit where they leave,
            0..=1.
        criterion: the measure of confidence.
        costs: of a request that leaves at each exit (FLOPs, milliseconds, any
            unit); 1, 2, 3, … if absent.
        temperatures: one per exit; learned on `outputs` if absent.

    Returns:
        The policy with the smallest mean cost; of several, the most accurate.

    Raises:
        ArgumentError: if an argument is invalid.
        TargetError: if no combination reaches the target.
    """
    if not 0.0 <= target <= 1.0:
        raise ArgumentError(f"a target accuracy must be within 0..=1, not {target}")
    temps = _temperatures(outputs, temperatures)
    if len(temps) == 1:
        raise ArgumentError("there is no side exit to learn a threshold for")
    measured = [criterion.measure(o, t) for o, t in zip(outputs.logits[:-1], temps, strict=False)]
    search = _Search(
        criterion=criterion,
        measured=measured,
        order=[surest_first(m, criterion) for m in measured],
        right=[outputs.right(i) for i in range(len(temps))],
        costs=_costs(costs, len(temps)),
        enough=math.ceil(target * len(outputs.labels) - 1e-9),
    )
    best = search.best(0, torch.ones_like(outputs.labels, dtype=torch.bool), _Choice((), 0.0, 0))
    if best is None:
        reached = search.most_right / len(outputs.labels)
        raise TargetError(
            f"no thresholds reach an accuracy of {target:.4f} on {len(outputs.labels)} rows, the "
            f"best reach {reached:.4f}: lower the target or train longer"
        )
    return Policy(criterion, temps, best.thresholds)


@dataclass(frozen=True)
class _Choice:
    """Thresholds of the first exits, with the totals of the rows that left there."""

    thresholds: tuple[float | None, ...]
    cost: float
    right: int

    def better_than(self, other: _Choice | None) -> bool:
        if other is None:
            return True
        return (self.cost, -self.right) < (other.cost, -other.right)


@dataclass
class _Search:
    """Depth-first search over the side exits; the last one is scanned at once."""

    criterion: Criterion
    measured: list[Tensor]
    order: list[Tensor]
    right: list[Tensor]
    costs: Sequence[float]
    enough: int
    most_right: int = 0

    def best(self, index: int, reach: Tensor, so_far: _Choice) -> _Choice | None:
        """The best continuation at side exit `index` for the rows that `reach` it."""
        ranked = self.order[index][reach[self.order[index]]]
        found = scan_ranked(ranked, self.measured[index][ranked], self.criterion)
        if index + 1 == len(self.measured):
            return self._best_of_last(found, so_far)
        found = found.thinned(self._breadth())
        right = _prefix_sums(self.right[index][ranked])
        best: _Choice | None = None
        reach_next = reach.clone()
        for threshold, count in zip(found.thresholds, found.counts.tolist(), strict=True):
            left = _Choice(
                (*so_far.thresholds, threshold),
                so_far.cost + self.costs[index] * count,
                so_far.right + int(right[count]),
            )
            reach_next[ranked[:count]] = False
            choice = self.best(index + 1, reach_next, left)
            if choice is not None and choice.better_than(best):
                best = choice
        return best

    def _breadth(self) -> int:
        earlier = len(self.measured) - 1
        return max(2, int(COMBINATIONS ** (1.0 / earlier) + 1e-9))

    def _best_of_last(self, found: Scan, so_far: _Choice) -> _Choice | None:
        leave, stay = self.right[-2][found.order], self.right[-1][found.order]
        stayed = int(stay.sum()) - _prefix_sums(stay)
        right = (so_far.right + _prefix_sums(leave) + stayed)[found.counts]
        leaving = found.counts.double()
        cost = so_far.cost + (
            leaving * self.costs[-2] + (len(found.order) - leaving) * self.costs[-1]
        )
        self.most_right = max(self.most_right, int(right.max()))
        allowed = right >= self.enough
        if not bool(allowed.any()):
            return None
        cheapest = cost[allowed].min()
        step = int(torch.where(allowed & (cost == cheapest), right, -1).argmax())
        return _Choice(
            (*so_far.thresholds, found.thresholds[step]), float(cost[step]), int(right[step])
        )


def _prefix_sums(flags: Tensor) -> Tensor:
    """How many of the first 0, 1, 2, … `flags` are true."""
    return torch.cat([torch.zeros(1, dtype=torch.long), flags.long().cumsum(0)])


def _temperatures(outputs: ExitOutputs, given: Sequence[float] | None) -> tuple[float, ...]:
    if given is None:
        return outputs.calibrated()
    if len(given) != len(outputs.logits):
        raise ArgumentError(f"{len(given)} temperatures for {len(outputs.logits)} exits")
    return tuple(given)


def _costs(given: Sequence[float] | None, exits: int) -> Sequence[float]:
    costs = list(range(1, exits + 1)) if given is None else list(given)
    if len(costs) != exits or any(not math.isfinite(c) or c < 0.0 for c in costs):
        raise ArgumentError(f"give a cost of 0 or more for each of {exits} exits, not {given}")
    return [float(c) for c in costs]
