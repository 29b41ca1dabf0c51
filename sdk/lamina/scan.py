"""All thresholds that make a difference on a set of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lamina.criterion import Criterion

if TYPE_CHECKING:
    from torch import Tensor

GAP = 1e-6
"""Measures closer than this are not told apart: hosts compute them in single
precision, and a threshold between them would let different rows leave there."""


@dataclass(frozen=True)
class Scan:
    """Thresholds from the strictest to the most permissive.

    Attributes:
        order: indices of the rows, the most confident first.
        thresholds: None (no row leaves), then the middle of every gap, finally
            the one at which all leave.
        counts: number of rows that leave at each threshold, from the front of `order`.
    """

    order: Tensor
    thresholds: tuple[float | None, ...]
    counts: Tensor

    def thinned(self, at_most: int) -> Scan:
        """The first, the last and evenly many between them, `at_most` (2 or more)."""
        if len(self.thresholds) <= at_most:
            return self
        kept = torch.linspace(0, len(self.thresholds) - 1, at_most).round().long()
        return Scan(self.order, tuple(self.thresholds[i] for i in kept), self.counts[kept])


def scan(measured: Tensor, criterion: Criterion) -> Scan:
    """The thresholds that split `measured`, a value per row."""
    order = surest_first(measured, criterion)
    return scan_ranked(order, measured[order], criterion)


def surest_first(measured: Tensor, criterion: Criterion) -> Tensor:
    """Indices of the rows, the most confident first."""
    return measured.argsort(descending=criterion is Criterion.CONFIDENCE, stable=True)


def scan_ranked(order: Tensor, ranked: Tensor, criterion: Criterion) -> Scan:
    """The thresholds that split the rows `order`, whose measures are `ranked`."""
    gaps = (ranked.diff().abs() > GAP).nonzero().flatten()
    middles = (ranked[gaps] + ranked[gaps + 1]) / 2.0
    if len(ranked) == 0:
        return Scan(order, (None,), torch.tensor([0]))
    return Scan(
        order,
        (None, *middles.tolist(), criterion.lets_all_leave),
        torch.cat([torch.tensor([0]), gaps + 1, torch.tensor([len(ranked)])]),
    )
