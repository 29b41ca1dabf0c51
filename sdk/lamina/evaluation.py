"""Evaluates exits on a set of rows that was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lamina.calibration import check_rows, fit_temperature
from lamina.errors import ArgumentError
from lamina.modes import evaluating
from lamina.scan import scan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from lamina.criterion import Criterion
    from lamina.model import MultiExit
    from lamina.policy import Policy
    from lamina.training import Batches


@dataclass(frozen=True)
class ExitOutputs:
    """Logits of every exit for every row.

    Attributes:
        logits: rows x classes per exit, in the order of the outputs.
        labels: the right class index of each row.
    """

    logits: tuple[Tensor, ...]
    labels: Tensor

    def __post_init__(self) -> None:
        if not self.logits:
            raise ArgumentError("there is no exit")
        for logits in self.logits:
            check_rows(logits, self.labels)

    def right(self, index: int) -> Tensor:
        """Which rows are right at exit `index`, as booleans."""
        return self.logits[index].argmax(dim=1) == self.labels

    def calibrated(self) -> tuple[float, ...]:
        """A temperature per exit, learned on these rows."""
        return tuple(fit_temperature(logits, self.labels) for logits in self.logits)


def collect(model: MultiExit, batches: Batches) -> ExitOutputs:
    """Collects the logits of all exits.

    The model runs in evaluation mode, without gradients, and its mode is restored;
    the logits are on the CPU.

    Raises:
        ArgumentError: if there are no batches.
    """
    with evaluating(model):
        parts = [([o.cpu() for o in model(x)], labels.cpu()) for x, labels in batches]
    if not parts:
        raise ArgumentError("there are no batches")
    by_exit = zip(*(outputs for outputs, _ in parts), strict=True)
    return ExitOutputs(
        tuple(torch.cat(logits) for logits in by_exit),
        torch.cat([labels for _, labels in parts]),
    )


@dataclass(frozen=True)
class ExitTableRow:
    """The effect of one threshold at one exit, on a set of rows.

    Attributes:
        threshold: for the criterion of the table.
        exit_rate: share of all rows that are confident enough at this exit, 0..=1, as
            if it were the only side exit.
        accuracy: share of those that the exit gets right, 0..=1.
    """

    threshold: float
    exit_rate: float
    accuracy: float


def exit_table(
    outputs: ExitOutputs,
    index: int,
    criterion: Criterion,
    temperature: float = 1.0,
    rows: int = 10,
) -> tuple[ExitTableRow, ...]:
    """Threshold, exit rate and accuracy of one exit, strict to permissive.

    Args:
        outputs: of a validation set.
        index: of the exit.
        criterion: the measure of confidence.
        temperature: of the exit.
        rows: number of thresholds, at even steps of the exit rate; fewer
            if the set does not distinguish them.

    Raises:
        ArgumentError: if an argument is invalid.
    """
    if rows < 1:
        raise ArgumentError(f"rows must be 1 or more, not {rows}")
    found = scan(criterion.measure(outputs.logits[index], temperature), criterion)
    right = outputs.right(index)[found.order].cumsum(0)
    total = len(outputs.labels)
    wanted = torch.arange(1, rows + 1) * total / rows
    table = []
    steps = torch.searchsorted(found.counts, wanted.ceil().long()).tolist()
    for step in dict.fromkeys(steps):
        threshold, count = found.thresholds[step], int(found.counts[step])
        if threshold is not None:
            table.append(ExitTableRow(threshold, count / total, int(right[count - 1]) / count))
    return tuple(table)


@dataclass(frozen=True)
class ExitShare:
    """Results of one exit with all thresholds of a policy in force.

    Attributes:
        exit_rate: share of all rows that leave here, 0..=1; over all exits 1.
        accuracy: share of those that are right, 0..=1; None if no row leaves.
        accuracy_alone: share of all rows that this exit would get right, 0..=1.
    """

    exit_rate: float
    accuracy: float | None
    accuracy_alone: float


@dataclass(frozen=True)
class Evaluation:
    """A policy on a set of rows.

    Attributes:
        accuracy: share of all rows that are right, 0..=1.
        exits: in the order of the outputs.
    """

    accuracy: float
    exits: tuple[ExitShare, ...]


def evaluate(outputs: ExitOutputs, policy: Policy) -> Evaluation:
    """Applies `policy` to the rows of `outputs`.

    Raises:
        ArgumentError: if the policy is for another number of exits.
    """
    taken = policy.decide(outputs.logits)
    shares, right = [], 0
    for index in range(len(outputs.logits)):
        here, correct = taken == index, outputs.right(index)
        right_here, count = int((correct & here).sum()), int(here.sum())
        right += right_here
        shares.append(
            ExitShare(
                exit_rate=count / len(taken),
                accuracy=right_here / count if count else None,
                accuracy_alone=int(correct.sum()) / len(taken),
            )
        )
    return Evaluation(right / len(taken), tuple(shares))


def format_table(table: Sequence[ExitTableRow]) -> str:
    """`table` as text in columns."""
    lines = ["threshold  exit rate  accuracy"]
    lines += [f"{r.threshold:9.6f}  {r.exit_rate:9.1%}  {r.accuracy:8.1%}" for r in table]
    return "\n".join(lines)


def format_evaluation(evaluation: Evaluation, names: Sequence[str], policy: Policy) -> str:
    """`evaluation` as text in columns, a line per exit and one for the whole."""
    width = max(len("all together"), *(len(n) for n in names))
    lines = [f"{'exit':{width}}  threshold  temperature  exit rate  accuracy  accuracy alone"]
    thresholds = (*policy.thresholds, None)
    for name, share, threshold, temperature in zip(
        names, evaluation.exits, thresholds, policy.temperatures, strict=True
    ):
        limit = "-" if threshold is None else f"{threshold:.6f}"
        accuracy = "-" if share.accuracy is None else f"{share.accuracy:.1%}"
        lines.append(
            f"{name:{width}}  {limit:>9}  {temperature:11.3f}  {share.exit_rate:9.1%}  "
            f"{accuracy:>8}  {share.accuracy_alone:14.1%}"
        )
    whole = f"{evaluation.accuracy:.1%}"
    lines.append(f"{'all together':{width}}  {'':9}  {'':11}  {'':9}  {whole:>8}")
    return "\n".join(lines)
