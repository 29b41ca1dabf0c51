"""Writes a program as a file, and checks that they are equal."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind
from torch.utils import _pytree as pytree

from lamina import files
from lamina.datatypes import NAMES
from lamina.errors import ExportError
from lamina.modes import quiet, without_gradients
from lamina.program import sizes, trials
from lamina.program.arguments import read, size_at
from lamina.program.report import Check, FreeSize, InputReport, OutputReport, ProgramReport
from lamina.program.source import source
from lamina.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch.export import ExportedProgram

    from lamina.program.arguments import Argument, Arguments, Declared
    from lamina.program.source import Source

_SEED = 0
_REQUESTS = 4
"""In which all free sizes change together."""


def export_program(
    program: ExportedProgram,
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[Declared] = (),
    network: nn.Module | None = None,
) -> ProgramReport:
    """Writes a program of `torch.export` as a TorchScript file that Lamina serves.

    The file is written from the program's graph, not traced, so sizes that are free in the
    program (the batch, the length of a text, the size of an image) are free in the file. It
    is read back and compared with the program, bit for bit, before it replaces the file at
    `path`: on the example, on other values, and at two other values of each free size.

    Weights are compared as served, without gradients. With gradients PyTorch multiplies
    some matrices differently, and the last bits differ, in the network itself as well.

    Args:
        program: of `torch.export.export` or `torch.export.load`, of a network in evaluation
            mode.
        path: of the file, usually `*.pt`.
        inputs: names and ranges of the inputs, in order; the program's own if omitted.
        network: the source of the program. If given, the file is compared with it as well, and
            on more requests, in which all free sizes change together.

    Raises:
        ArgumentError: if `inputs` do not match the program.
        ExportError: with the operator or reason that prevents it.
        OSError: if the file cannot be written.
    """
    with torch.inference_mode(False), torch.no_grad(), quiet():
        arguments = read(program, inputs)
        text = source(program)
        archive = _archive(_compiled(text))
        loaded: torch.jit.ScriptModule = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(archive), map_location="cpu"
        )
        comparison = _Comparison(program, arguments, loaded, network)
        held = [*program.parameters(), *(network.parameters() if network else ())]
        with without_gradients(held):
            checks = tuple(comparison.checks())
    files.replace(Path(path), archive)
    return ProgramReport(
        output=os.fspath(path),
        file_bytes=len(archive),
        operators=text.operators,
        producer=f"lamina {__version__}, torch {torch.__version__}",
        inputs=tuple(_input_report(a, program, arguments) for a in arguments.tensors),
        outputs=tuple(_output_reports(program)),
        checks=checks,
        notes=tuple(_notes(text, arguments, comparison)),
    )


def _compiled(text: Source) -> torch.jit.ScriptModule:
    # A class for each: TorchScript takes networks of one class with equal attributes for one
    # type, and a type has one `forward`.
    class Network(torch.jit.ScriptModule):
        """Holds the attributes that a text reads from `self`."""

        def __init__(self) -> None:
            super().__init__()
            for name, tensor in text.tensors.items():
                value = tensor.detach().cpu()
                if name in text.parameters:
                    self.register_parameter(name, nn.Parameter(value, requires_grad=False))
                else:
                    self.register_buffer(name, value)

    network = Network()
    try:
        network.define(text.code)
    except RuntimeError as error:
        raise ExportError(f"TorchScript does not take the program: {said(error)}") from error
    network.eval()
    return network


def _archive(network: torch.jit.ScriptModule) -> bytes:
    # To memory, because torch puts the name of the file into the archive.
    buffer = io.BytesIO()
    torch.jit.save(network, buffer)
    return buffer.getvalue()


class _Comparison:
    """Compares the program with the file."""

    def __init__(
        self,
        program: ExportedProgram,
        arguments: Arguments,
        loaded: torch.jit.ScriptModule,
        network: nn.Module | None,
    ) -> None:
        self._ranges = program.range_constraints
        # Without the guards: whether it answers beyond its bounds is one of the questions.
        self._program = program.module(check_guards=False)
        self._arguments = arguments
        self._loaded = loaded
        self._network = network
        self._generator = torch.Generator().manual_seed(_SEED)
        self.is_telling = False

    def checks(self) -> Iterator[Check]:
        """Compares on one request after the other.

        Raises:
            ExportError: at the first difference.
        """
        arguments = self._arguments
        example = arguments.examples()
        sizes_then = arguments.example_sizes
        other = self._draw(sizes_then)
        if example is None:
            example = self._draw(sizes_then)
        first = self._expected(example)
        if not _equal(first, self._expected(example)):
            raise ExportError(
                "two equal requests get answers that differ: the network draws random numbers or "
                "keeps a state; call eval() before exporting"
            )
        yield self._check("the example", example)
        yield self._check("other values", other)
        self.is_telling = not _equal(first, self._expected(other))
        for group in arguments.together():
            yield from self._other_sizes(group)
        if self._network is not None:
            yield from self._other_requests()

    def _other_sizes(self, group: Sequence[sizes.Expression]) -> Iterator[Check]:
        then = self._arguments.example_sizes[group[0]]
        is_batch = self._arguments.batch in group
        what = "batch" if is_batch else f"size {self._place(group[0])}"
        allowed = trials.common([trials.bounds(self._ranges, s) for s in group])
        tried = 0
        for size in trials.other_sizes(then, allowed, is_batch=is_batch):
            values = {**self._arguments.example_sizes, **dict.fromkeys(group, size)}
            check = self._check(f"{what} {size}", self._draw(values), may_refuse=True)
            yield check
            tried += check.equal
            if tried == trials.SIZES:
                return

    def _other_requests(self) -> Iterator[Check]:
        """Requests in which all free sizes differ from the example's."""
        then, drawn = self._arguments.example_sizes, random.Random(_SEED)
        for number in range(1, _REQUESTS + 1):
            values = dict(then)
            for group in self._arguments.together():
                allowed = trials.common([trials.bounds(self._ranges, s) for s in group])
                is_batch = self._arguments.batch in group
                size = trials.drawn(then[group[0]], allowed, drawn, is_batch=is_batch)
                values.update(dict.fromkeys(group, size))
            yield self._check(f"request {number}", self._draw(values), may_refuse=True)

    def _place(self, symbol: sizes.Expression) -> str:
        """Position of a free size, `x[2]`."""
        for argument in self._arguments.tensors:
            for place, size in enumerate(argument.sizes):
                if not isinstance(size, int) and symbol in size.free_symbols:
                    return f"{argument.name}[{place}]"
        return str(symbol)

    def _draw(self, values: dict[sizes.Expression, int]) -> list[Tensor]:
        return [a.draw(values, self._generator) for a in self._arguments.tensors]

    def _check(self, why: str, request: list[Tensor], *, may_refuse: bool = False) -> Check:
        shapes = tuple(tuple(t.shape) for t in request)
        try:
            expected = self._expected(request)
        except Exception as error:  # a graph throws without a common type
            if not may_refuse:
                raise ExportError(f"the program fails on {why}: {said(error)}") from error
            return Check(why, shapes, equal=False, message=said(error))
        self._check_network(why, request, expected)
        before = self._versions()
        try:
            actual = _leaves(self._loaded(*[t.clone() for t in request]))
        except Exception as error:
            raise ExportError(
                f"the file fails on {why} where the program does not: {said(error)}"
            ) from error
        if self._versions() != before:
            raise ExportError(
                "the network overwrites its own weights or buffers: call eval() before exporting, "
                "or make them an input and an output"
            )
        if not _equal(expected, actual):
            raise ExportError(f"the file's answer differs from the program's on {why}")
        return Check(why, shapes, equal=True)

    def _check_network(self, why: str, request: Sequence[Tensor], expected: list[Tensor]) -> None:
        if self._network is None:
            return
        places, names = self._arguments.call([t.clone() for t in request])
        try:
            own = _leaves(self._network(*places, **names))
        except Exception as error:
            raise ExportError(
                f"the network fails on {why} where its program does not: {said(error)}"
            ) from error
        if not _equal(own, expected):
            raise ExportError(
                f"the program's answer differs from the network's on {why}: torch.export does not "
                "see how it decides"
            )

    def _expected(self, request: Sequence[Tensor]) -> list[Tensor]:
        # Copies, because a network may work in place.
        places, names = self._arguments.call([t.clone() for t in request])
        return _leaves(self._program(*places, **names))

    def _versions(self) -> list[int]:
        held = (*self._loaded.parameters(), *self._loaded.buffers())
        return [tensor._version for tensor in held]


def _leaves(answer: object) -> list[Tensor]:
    leaves = [leaf for leaf in pytree.tree_leaves(answer) if leaf is not None]
    return [leaf if isinstance(leaf, Tensor) else torch.tensor(leaf) for leaf in leaves]


def _equal(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> bool:
    return len(expected) == len(actual) and all(map(_is_same, expected, actual))


def _is_same(left: Tensor, right: Tensor) -> bool:
    """Equal bit for bit, NaN included."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    return torch.equal(_bytes(left), _bytes(right))


def _bytes(tensor: Tensor) -> Tensor:
    # A copy, because a tensor of one element may have any stride.
    flat = tensor.detach().reshape(-1).clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8)


def said(error: BaseException) -> str:
    """The informative line of an error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    spoken = [line for line in lines if not line.startswith(("The following", "Traceback", "File"))]
    return (spoken or lines or [type(error).__name__])[-1 if not spoken else 0].rstrip(":")


def _input_report(argument: Argument, program: ExportedProgram, all_: Arguments) -> InputReport:
    shape = tuple(s if isinstance(s, int) else -1 for s in argument.sizes)
    example = tuple(size_at(s, all_.example_sizes) for s in argument.sizes)
    names = _size_names(all_)
    free = tuple(
        FreeSize(place, *_bounds(program, size), name=names.get(size))
        for place, size in enumerate(argument.sizes)
        if not isinstance(size, int)
    )
    low, high = argument.low, argument.high
    if low is None and argument.example is not None and not argument.dtype.is_floating_point:
        low, high = (float(v) for v in argument.example.to(torch.float64).aminmax())
    return InputReport(
        argument.name, NAMES[argument.dtype], shape, example, free, low=low, high=high
    )


def _size_names(arguments: Arguments) -> dict[sizes.Expression, str]:
    """`n0`, `n1`, …: one for all sizes that requests choose together, none for the batch."""
    groups = [g for g in arguments.together() if arguments.batch not in g]
    return {symbol: f"n{number}" for number, group in enumerate(groups) for symbol in group}


def _bounds(program: ExportedProgram, size: sizes.Expression) -> tuple[int, int | None]:
    """Bounds of a size: those of its symbol if it is one, else unknown."""
    found = trials.bounds(program.range_constraints, size)
    return found.low, found.high


def _output_reports(program: ExportedProgram) -> Iterator[OutputReport]:
    (output,) = [n for n in program.graph.nodes if n.op == "output"]
    for spec, node in zip(program.graph_signature.output_specs, output.args[0], strict=True):
        stand_in = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(stand_in, Tensor):
            datatype = NAMES.get(stand_in.dtype, str(stand_in.dtype))
            yield OutputReport(datatype, sizes.shape(stand_in))


def _notes(text: Source, arguments: Arguments, comparison: _Comparison) -> Iterator[str]:
    for fixed in text.dropped_inputs:
        yield f"{fixed} is fixed in the program and no input of the file"
    for argument in arguments.tensors:
        if argument.number is not None:
            kind = NAMES[argument.dtype]
            yield f"{argument.name} is a whole number in the program and a scalar {kind} here"
    if arguments.batch is None:
        yield (
            "the batch is fixed in the program: export it with dynamic_shapes, such as "
            "{'x': {0: torch.export.Dim('batch')}}, where it should be free"
        )
    if not comparison.is_telling:
        yield (
            "the example and other values get the same answer, so equality says little: export "
            "trained weights, or a telling example"
        )
