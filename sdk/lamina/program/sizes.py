"""Free sizes of a graph, in its own symbols."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable

Expression = Any
"""A sympy expression, for which there are no types."""


def expression(size: object) -> Expression | None:
    """The symbols behind a number of the graph; None if it is plain."""
    if isinstance(size, torch.SymInt):
        found = size.node.expr
        return None if found.is_Integer else found
    return None


def shape(tensor: Tensor) -> tuple[int, ...]:
    """The sizes of a fake tensor, -1 for free ones.

    A symbol that torch.export has reduced to one number is not free.
    """
    return tuple(-1 if expression(s) is not None else int(s) for s in tensor.shape)


def from_tensors(wanted: Expression, tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """TorchScript that reads the number `wanted` from one of `tensors`.

    If an operator takes its sizes from its own operands, it needs no number from the
    beginning of the network, so that a cut in front of it sends only one tensor.

    Args:
        wanted: as returned by `expression`.
        tensors: names and fake tensors of the values.
    """
    for name, tensor in tensors:
        for place, size in enumerate(tensor.shape):
            found = expression(size)
            if found is None:
                continue
            # Sizes are multiples of each other or unrelated.
            ratio = wanted / found
            if ratio.is_Rational and ratio.is_positive:
                return _scaled(f"{name}.size({place})", int(ratio.p), int(ratio.q))
    return None


def _scaled(text: str, times: int, over: int) -> str:
    if times != 1:
        text = f"{text} * {times}"
    return text if over == 1 else f"{text} // {over}"
