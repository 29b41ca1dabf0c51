"""Results of an export, for people and for programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from lamina.program.arguments import format_shape


@dataclass(frozen=True)
class FreeSize:
    """A size that requests may choose.

    Attributes:
        place: in the shape, from 0.
        low: smallest that the export allows.
        high: largest, None if unbounded.
        name: its declared name, shared by sizes that requests choose together; None for
            the batch, and for a size that is not a symbol.
    """

    place: int
    low: int
    high: int | None
    name: str | None = None


@dataclass(frozen=True)
class InputReport:
    """An input of the file.

    Attributes:
        name: of the argument.
        datatype: its name in the Open Inference Protocol.
        shape: -1 for free sizes.
        example_shape: that of the example.
        free: the bounds of the free sizes.
        low: smallest value in the checks' requests, for integers.
        high: largest value.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    example_shape: tuple[int, ...]
    free: tuple[FreeSize, ...]
    low: float | None
    high: float | None

    def declaration(self) -> str:
        """For `lamina-node-agent prepare --input`; unbounded sizes are as in the example."""
        named = {f.place: f for f in self.free if f.name is not None and f.high is not None}
        shape: list[str] = []
        for place, (size, example) in enumerate(zip(self.shape, self.example_shape, strict=True)):
            free = named.get(place)
            if free is not None:
                typical = max(example, free.low)
                shape.append(f"{free.name}:{free.low}..{free.high}@{typical}")
            else:
                shape.append(str(size if place == 0 else example))
        text = f"{self.name}:{self.datatype}:{'x'.join(shape)}"
        return text if self.low is None else f"{text}:{self.low:g}:{self.high:g}"


@dataclass(frozen=True)
class OutputReport:
    """An output of the file.

    Attributes:
        datatype: its name in the Open Inference Protocol, or torch's.
        shape: -1 for sizes that follow from the request.
    """

    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Check:
    """A request on which the file and the program were compared.

    Attributes:
        why: purpose of the check.
        shapes: of the inputs.
        equal: bit for bit; if not, the program itself refuses the request.
        message: the program's error for a request that it refuses.
    """

    why: str
    shapes: tuple[tuple[int, ...], ...]
    equal: bool
    message: str | None = None


@dataclass(frozen=True)
class ProgramReport:
    """The written file, and the checks before it was written.

    Attributes:
        output: the file.
        file_bytes: its size.
        operators: calls of operators in it.
        producer: the versions that wrote it.
        inputs: in the order of `forward`.
        outputs: in the order of their leaves.
        checks: all comparisons.
        notes: hints for serving the file.
    """

    output: str
    file_bytes: int
    operators: int
    producer: str
    inputs: tuple[InputReport, ...]
    outputs: tuple[OutputReport, ...]
    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    @property
    def is_batch_free(self) -> bool:
        """Whether the first input accepts any batch."""
        return self.inputs[0].shape[:1] == (-1,)

    def prepare_command(self) -> str:
        """The command to inspect the file next."""
        inputs = " ".join(f"--input {i.declaration()}" for i in self.inputs)
        return f"lamina-node-agent prepare {self.output} {inputs} --out blocks"

    def to_json(self) -> str:
        """One object with camelCase names, as in all of Lamina."""
        document = _camel({**asdict(self), "prepare_command": self.prepare_command()})
        return json.dumps(document, indent=1, allow_nan=False)

    def to_text(self) -> str:
        """Lines for a terminal."""
        lines = [
            f"{self.output}: {self.file_bytes / 1e6:.1f} MB, {self.operators} operators, "
            f"{self.producer}"
        ]
        lines += [f"  takes {i.name} {i.datatype} {format_shape(i.shape)}" for i in self.inputs]
        lines += [f"  gives {o.datatype} {format_shape(o.shape)}" for o in self.outputs]
        width = max(len(c.why) for c in self.checks)
        lines += [_check_line(c, width) for c in self.checks]
        lines += [f"note: {n}" for n in self.notes]
        return "\n".join([*lines, f"next: {self.prepare_command()}"])


def _check_line(check: Check, width: int) -> str:
    shapes = " ".join(map(format_shape, check.shapes))
    verdict = "equal, bit for bit" if check.equal else f"refused by the program: {check.message}"
    return f"  {check.why:<{width}}  {shapes}  {verdict}"


def _camel(value: object) -> object:
    if isinstance(value, dict):
        return {_camel_name(k): _camel(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_camel(v) for v in value]
    return value


def _camel_name(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)
