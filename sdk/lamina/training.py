"""A short training loop. With your own loop, use `joint_loss` in it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lamina.errors import ArgumentError
from lamina.loss import check_weights, joint_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from lamina.model import MultiExit

    Batches = Iterable[tuple[Tensor, Tensor]]
    """Pairs of inputs and class indices; gone through once in each epoch."""


@dataclass(frozen=True)
class Epoch:
    """Results of one pass over the training set.

    Attributes:
        number: counts from 1.
        of: total number of passes.
        loss: joint loss, mean over the rows.
        seconds: wall time of this pass.
    """

    number: int
    of: int
    loss: float
    seconds: float


def train(
    model: MultiExit,
    batches: Batches,
    *,
    epochs: int,
    learning_rate: float = 1e-2,
    weights: Sequence[float] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> list[Epoch]:
    """Trains all stages and exits together: AdamW, cosine schedule, joint loss.

    The result depends only on torch's seed and the order of `batches`. The model is
    left in evaluation mode.

    Args:
        model: on the device of the batches.
        batches: a `DataLoader` or a list.
        epochs: passes over `batches`, 1 or more.
        learning_rate: at the start; it falls to 0.
        weights: of the exits in the joint loss.
        on_epoch: called after each pass.

    Returns:
        One report per pass.

    Raises:
        ArgumentError: if an argument is invalid.
    """
    if epochs < 1:
        raise ArgumentError(f"epochs must be 1 or more, not {epochs}")
    chosen = check_weights(weights, len(model.places))
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    reports = []
    model.train()
    for number in range(1, epochs + 1):
        start = time.perf_counter()
        loss = _epoch(model, batches, optimizer, chosen)
        schedule.step()
        reports.append(Epoch(number, epochs, loss, time.perf_counter() - start))
        if on_epoch is not None:
            on_epoch(reports[-1])
    model.eval()
    return reports


def _epoch(
    model: MultiExit,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    weights: Sequence[float],
) -> float:
    total, rows = 0.0, 0
    for inputs, labels in batches:
        optimizer.zero_grad()
        loss = joint_loss(model(inputs), labels, weights)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * len(labels)
        rows += len(labels)
    if rows == 0:
        raise ArgumentError("there are no batches: give a list or a DataLoader, not an iterator")
    return total / rows
