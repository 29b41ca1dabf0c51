"""Runs requests through a network, exit by exit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from lamina.errors import ArgumentError
from lamina.model import MultiExit
from lamina.modes import evaluating

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lamina.policy import Policy


@dataclass(frozen=True)
class Prediction:
    """Answers of rows that left as early as a policy allows.

    Attributes:
        labels: class index of each row.
        exits: index of the exit at which each row left.
    """

    labels: Tensor
    exits: Tensor


def predict(model: MultiExit, x: Tensor, policy: Policy) -> Prediction:
    """Answers as a serving host would: confident rows leave.

    A stage runs only on the rows that left at no exit before it.

    Args:
        model: with as many exits as `policy`; in any mode, which is kept.
        x: inputs, rows first.
        policy: criterion, temperatures and thresholds.

    Raises:
        ArgumentError: if the policy is for another number of exits.
    """
    if len(policy.temperatures) != len(model.places):
        raise ArgumentError(
            f"the network has {len(model.places)} exits, the policy is for "
            f"{len(policy.temperatures)}"
        )
    walk = _Walk(policy, torch.zeros(len(x), dtype=torch.long), torch.full((len(x),), -1))
    with evaluating(model):
        walk.along(model, 0, x, torch.arange(len(x)))
    return Prediction(walk.labels, walk.exits)


@dataclass
class _Walk:
    """Answers so far; the exit is -1 for rows that have not left yet."""

    policy: Policy
    labels: Tensor
    exits: Tensor

    def along(self, chain: MultiExit, first: int, x: Tensor, rows: Tensor) -> None:
        """Sends `rows`, whose values are `x`, along a trunk or a branch.

        Its exits count from `first`.
        """
        exit_index = first
        for index, stage in enumerate(chain.stages):
            if len(rows) == 0:
                return
            x = stage(x)
            if str(index) in chain.heads:
                head = chain.heads[str(index)]
                self._behind(head, exit_index, x, rows)
                exit_index += len(head.places) if isinstance(head, MultiExit) else 1
                undecided = self.exits[rows] < 0
                x, rows = x[undecided], rows[undecided]
        if chain.ends_in_stage:
            self._offer(exit_index, x, rows)

    def _behind(self, head: nn.Module, exit_index: int, x: Tensor, rows: Tensor) -> None:
        if isinstance(head, MultiExit):
            self.along(head, exit_index, x, rows)
        else:
            self._offer(exit_index, head(x), rows)

    def _offer(self, exit_index: int, logits: Tensor, rows: Tensor) -> None:
        """Lets confident ones of `rows` leave, at the last exit all."""
        if exit_index == len(self.policy.thresholds):
            leaving = torch.ones(len(rows), dtype=torch.bool)
        else:
            criterion, threshold = self.policy.criterion, self.policy.thresholds[exit_index]
            measured = criterion.measure(logits, self.policy.temperatures[exit_index])
            leaving = criterion.leaves(measured, threshold).cpu()
        self.labels[rows[leaving]] = logits.argmax(dim=1).cpu()[leaving]
        self.exits[rows[leaving]] = exit_index


def flops_to_exits(model: MultiExit, example: Tensor) -> tuple[int, ...]:
    """Floating-point operations of a request that leaves at each exit.

    Includes all exits before it, because the request has tried them. Counted by
    torch: convolutions and matrix products, two per multiply-add. Suitable as
    `costs` of `thresholds_for_accuracy`.

    Args:
        model: in any mode, which is kept.
        example: one row, or more for their sum.
    """
    found: list[int] = []
    with evaluating(model), FlopCounterMode(display=False) as counter:
        _count(model, example.clone(), counter, found)
    return tuple(found)


def _count(chain: MultiExit, x: Tensor, counter: FlopCounterMode, found: list[int]) -> None:
    for index, stage in enumerate(chain.stages):
        x = stage(x)
        if str(index) not in chain.heads:
            continue
        head = chain.heads[str(index)]
        if isinstance(head, MultiExit):
            _count(head, x, counter, found)
        else:
            head(x)
            found.append(counter.get_total_flops())
    if chain.ends_in_stage:
        found.append(counter.get_total_flops())
