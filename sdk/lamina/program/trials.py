"""Sizes at which a file is compared with its program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Mapping, Sequence

    from lamina.program.sizes import Expression

SIZES = 2
"""How many other sizes are tried of each that is free."""


@dataclass(frozen=True)
class Bounds:
    """Bounds of a free size.

    Attributes:
        low: the smallest.
        high: the largest, None if unbounded.
    """

    low: int
    high: int | None

    def __contains__(self, size: int) -> bool:
        return self.low <= size and (self.high is None or size <= self.high)


def bounds(ranges: Mapping[Expression, object], symbol: Expression) -> Bounds:
    """The program's bounds of one symbol."""
    found = ranges.get(symbol)
    low, high = (_whole(getattr(found, name, None)) for name in ("lower", "upper"))
    return Bounds(max(low or 0, 0), high)


def common(several: Sequence[Bounds]) -> Bounds:
    """The intersection of several bounds."""
    ends = [b.high for b in several if b.high is not None]
    return Bounds(max(b.low for b in several), min(ends) if ends else None)


def _whole(bound: object) -> int | None:
    """None for infinity."""
    try:
        return int(bound)  # type: ignore[call-overload, no-any-return]
    except (TypeError, ValueError, OverflowError, AttributeError):
        return None


def other_sizes(example: int, allowed: Bounds, *, is_batch: bool) -> Iterator[int]:
    """Sizes to try beside the example's, the most informative first.

    A batch of one is tried even if the export starts at two: torch.export treats
    one as a size of its own, and most requests are one.
    """
    if is_batch:
        wanted = [1, 3, 2, 4, 5, example + 1]
        allowed = Bounds(1 if allowed.low == 2 else allowed.low, allowed.high)
    else:
        wanted = [example + 1, example - 1, example * 2, example // 2, example + 32, example - 32]
    seen = {example, 0}
    for size in wanted:
        if size in allowed and size > 0 and size not in seen:
            seen.add(size)
            yield size


def drawn(example: int, allowed: Bounds, random_: random.Random, *, is_batch: bool) -> int:
    """A size of a request in which other sizes change as well."""
    low, high = (1, 8) if is_batch else (max(example // 2, 1), example + example // 2)
    if not (is_batch and allowed.low == 2):
        low = max(low, allowed.low)
    if allowed.high is not None:
        high = min(high, allowed.high)
    return random_.randint(low, max(low, high))
