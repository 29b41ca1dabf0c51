"""What a row of the table is: a model, a way to export it, and its inputs."""

from __future__ import annotations

import hashlib
import inspect
import re
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

SCRIPTED = "sc"
TRACED = "tr"
# Written by the SDK from a program of torch.export.
PROGRAM = "ex"

DTYPES = {
    "FP32": torch.float32,
    "FP64": torch.float64,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "UINT8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Size:
    """A free dimension beside the batch, `NAME:MIN..MAX[/STEP]@TYPICAL`."""

    name: str
    low: int
    high: int
    step: int
    typical: int

    def __str__(self) -> str:
        step = "" if self.step == 1 else f"/{self.step}"
        return f"{self.name}:{self.low}..{self.high}{step}@{self.typical}"

    def json(self, place: int) -> dict[str, object]:
        """As Lamina's manifests write it."""
        bounds = {"name": self.name, "min": self.low, "max": self.high, "step": self.step}
        return {"dimension": place, "typical": self.typical, "bounds": bounds}

    def draw(self, generator: torch.Generator) -> int:
        """Any size that is allowed."""
        steps = (self.high - self.low) // self.step
        return self.low + self.step * int(torch.randint(steps + 1, (), generator=generator))


def free(text: str) -> Size:
    """Reads a free dimension."""
    found = re.fullmatch(r"(\w+):(\d+)\.\.(\d+)(?:/(\d+))?@(\d+)", text)
    if found is None:
        raise ValueError(f"{text} is no NAME:MIN..MAX[/STEP]@TYPICAL")
    name, low, high, step, typical = found.groups()
    return Size(name, int(low), int(high), int(step or 1), int(typical))


@dataclass(frozen=True)
class Input:
    """An input as a user declares it; -1 in the first place is a free batch."""

    name: str
    shape: tuple[int | Size, ...]
    datatype: str = "FP32"
    range: tuple[float, float] | None = None

    def json(self) -> dict[str, object]:
        """As Lamina's manifests write it."""
        low_high = self.range and {"min": self.range[0], "max": self.range[1]}
        shape = [-1 if isinstance(size, Size) else size for size in self.shape]
        value: dict[str, object] = {"name": self.name, "datatype": self.datatype, "shape": shape}
        sizes = [size.json(i) for i, size in enumerate(self.shape) if isinstance(size, Size)]
        if sizes:
            value["sizes"] = sizes
        return {"value": value, "range": low_high}

    def argument(self) -> str:
        """As `lamina-node-agent prepare --input` takes it."""
        shape = "x".join(str(size) for size in self.shape)
        ends = "" if self.range is None else f":{self.range[0]:g}:{self.range[1]:g}"
        return f"{self.name}:{self.datatype}:{shape}{ends}"

    def draw(
        self, batch: int, generator: torch.Generator, sizes: Mapping[str, int] | None = None
    ) -> Tensor:
        """Random values inside the declared range, `batch` where that is free.

        Args:
            batch: rows.
            generator: of the values.
            sizes: of the free dimensions, by name; typical ones if left out.
        """

        def at(size: int | Size) -> int:
            if isinstance(size, Size):
                return (sizes or {}).get(size.name, size.typical)
            return batch if size == -1 else size

        shape = [at(size) for size in self.shape]
        dtype = DTYPES[self.datatype]
        if dtype.is_floating_point:
            if self.range is None:
                return torch.randn(shape, generator=generator).to(dtype)
            low, high = self.range
            return (torch.rand(shape, generator=generator) * (high - low) + low).to(dtype)
        low, high = self.range or (0, 1)
        return torch.randint(int(low), int(high) + 1, shape, generator=generator).to(dtype)


@dataclass(frozen=True)
class Entry:
    """A model exported in one way."""

    group: str
    model: str
    mode: str
    build: partial[nn.Module]
    inputs: tuple[Input, ...]
    # Models whose source of randomness or state is the point of the row.
    telling: bool = True

    @property
    def name(self) -> str:
        """Names the file and the row."""
        return f"{self.model}.{self.mode}"

    def draw(self, batch: int, seed: int) -> list[Tensor]:
        """One request of typical sizes."""
        generator = torch.Generator().manual_seed(seed)
        return [value.draw(batch, generator) for value in self.inputs]

    def draw_sized(self, batch: int, seed: int) -> list[Tensor]:
        """One request of any sizes; the first two are the smallest and the largest."""
        generator = torch.Generator().manual_seed(seed)
        sizes: dict[str, int] = {}
        for size in self.sizes():
            drawn = size.draw(generator)
            sizes.setdefault(size.name, {0: size.low, 1: size.high}.get(seed, drawn))
        return [value.draw(batch, generator, sizes) for value in self.inputs]

    def sizes(self) -> list[Size]:
        """All free dimensions beside the batch."""
        return [size for value in self.inputs for size in value.shape if isinstance(size, Size)]

    def key(self, versions: str, common: str) -> str:
        """Changes where the exported file might."""
        source = inspect.getsource(self.build.func)
        what = (versions, common, source, self.build.args, self.build.keywords, self.inputs)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def entries(
    group: str,
    model: str,
    build: partial[nn.Module],
    inputs: Sequence[Input],
    modes: str,
    *,
    telling: bool = True,
) -> list[Entry]:
    """One entry for each of `modes`, "tr sc"."""
    return [Entry(group, model, mode, build, tuple(inputs), telling) for mode in modes.split()]


def builder(function: Callable[..., nn.Module], *args: object, **kwargs: object) -> partial:
    """`function(*args, **kwargs)`, later; the arguments must be plain data."""
    return partial(function, *args, **kwargs)


def image(size: int, channels: int = 3) -> Input:
    """A square image with a free batch."""
    return Input("image", (-1, channels, size, size))


def tokens(length: int, vocabulary: int, name: str = "input_ids") -> Input:
    """Token ids with a free batch."""
    return Input(name, (-1, length), "INT64", (0, vocabulary - 1))
