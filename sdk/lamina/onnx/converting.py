"""Writes an ONNX file as TorchScript, and compares it with ONNX Runtime."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from lamina.datatypes import NAMES
from lamina.errors import ArgumentError, ExportError
from lamina.extras import needed
from lamina.modes import quiet, silent
from lamina.onnx.numbers import Numbers, constants
from lamina.program import Declared, export_program, said, shapes

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from torch.export import ExportedProgram

    from lamina.program import ProgramReport

TOLERANCE = 1e-3
"""By how much answers may differ from ONNX Runtime's, as a share of the largest number in them."""

_EXTRA = "onnx"
_ROWS = 2
_BATCHES = (1, 2, 3, 5)
"""At which the file is compared with ONNX Runtime, where the batch is free."""
_SEED = 0


def export_onnx(
    file: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    inputs: Sequence[Declared] = (),
) -> ProgramReport:
    """Writes an ONNX file as a TorchScript file that Lamina serves.

    onnx2pytorch builds a network from the file, which is written as in `export_program`.
    The result is compared with that network, bit for bit, and with ONNX Runtime within
    `TOLERANCE`. Sizes without a number in the ONNX file are free if its graph leaves them free.

    Args:
        file: the ONNX file, with its external weights beside it.
        path: of the file to write, usually `*.pt`.
        inputs: names and ranges of the inputs, in order, with an example size for each free
            size except the first.

    Raises:
        ArgumentError: if `inputs` do not match the file.
        ExportError: with the operator or reason that prevents it.
        OSError: if a file cannot be read or written.
    """
    with silent():
        network, given = _read(Path(file))
        session = _session(Path(file))
    wanted = _declared(given, inputs)
    with torch.no_grad(), quiet(), silent():
        program = _program(network, wanted, given)
        free = [replace(w, shape=s) for w, s in zip(wanted, shapes(program), strict=True)]
        report = export_program(program, path, inputs=free, network=network)
        difference, batches = _difference(session, path, wanted, is_free=report.is_batch_free)
    if not difference <= TOLERANCE:
        Path(path).unlink()
        raise ExportError(
            f"ONNX Runtime's answer differs by {difference:.1e} of its size, at most "
            f"{TOLERANCE:g} is accepted: onnx2pytorch or ONNX Runtime reads an operator otherwise"
        )
    note = (
        f"ONNX Runtime's answers differ by {difference:.1e} of their size at most, "
        f"at batches of {', '.join(map(str, batches))}"
    )
    return replace(report, notes=(*report.notes, note))


class _Network(nn.Module):
    """The network from onnx2pytorch, with numbers for tensors that hold sizes."""

    def __init__(self, converted: nn.Module) -> None:
        super().__init__()
        self.converted = converted
        self._constants = constants(converted.named_buffers())

    def forward(self, *inputs: Tensor) -> object:
        held = dict(self.converted.named_buffers())
        with Numbers((held[name], value) for name, value in self._constants.items()):
            return self.converted(*inputs)


class _Expand(nn.Module):
    """ONNX's Expand; the library's own does not accept symbolic shapes."""

    def forward(self, tensor: Tensor, shape: Tensor) -> Tensor:
        both = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
            tensor.shape, tuple(shape.tolist())
        )
        return tensor.expand(both)


class _Filled(nn.Module):
    """ONNX's ConstantOfShape, likewise."""

    def __init__(self, constant: Tensor) -> None:
        super().__init__()
        self.register_buffer("constant", constant)

    def forward(self, shape: Tensor) -> Tensor:
        constant: Tensor = self.get_buffer("constant")
        return constant.expand(tuple(shape.tolist()))


def _read(file: Path) -> tuple[_Network, list[Declared]]:
    """The network of a file, and the inputs that it names, -1 for free sizes."""
    onnx, library = needed("onnx", _EXTRA), needed("onnx2pytorch", _EXTRA)
    try:
        model = onnx.load(str(file))
        onnx.checker.check_model(str(file))
    except OSError:
        raise
    except Exception as error:  # from its parser
        raise ExportError(f"{file} is no whole file of ONNX: {said(error)}") from error
    _rename(model.graph, _copies(model.graph))
    try:
        converted = library.ConvertModel(model).eval().requires_grad_(False)
    except Exception as error:
        raise ExportError(f"onnx2pytorch does not take {file}: {said(error)}") from error
    for name, module in list(converted.named_modules()):
        kind = type(module).__name__
        if kind == "Expand":
            converted.set_submodule(name, _Expand())
        elif kind == "ConstantOfShape":
            converted.set_submodule(name, _Filled(module.get_buffer("constant")))
    held = {tensor.name for tensor in model.graph.initializer}
    given = [_input(onnx, model, value) for value in model.graph.input if value.name not in held]
    return _Network(converted), given


def _copies(graph: Any) -> dict[str, str]:  # noqa: ANN401
    """Weights under a second name, which the library does not treat as weights; drops those."""
    held = {tensor.name for tensor in graph.initializer}
    names, given = {}, {value.name for value in graph.output}
    for node in list(graph.node):
        if node.op_type == "Identity" and node.input[0] in held and node.output[0] not in given:
            names[node.output[0]] = node.input[0]
            graph.node.remove(node)
    return names


def _rename(graph: Any, names: dict[str, str]) -> None:  # noqa: ANN401
    """Removes the dots from values' names: the library uses them as module names."""
    for node in graph.node:
        for name in node.output:
            if "." in name:
                names[name] = f"value_{len(names)}_without_dots"
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g, names)
    for value in graph.output:
        value.name = names.get(value.name, value.name)


def _input(onnx: Any, model: Any, value: Any) -> Declared:  # noqa: ANN401 - onnx has no types
    kind = value.type.tensor_type
    with contextlib.suppress(KeyError, ValueError):
        numpy = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
        dtype = torch.from_numpy(numpy.type(0).reshape(1)).dtype
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        high = _vocabulary(model, value.name)
        return Declared(value.name, NAMES[dtype], shape, None if high is None else 0, high)
    raise ExportError(
        f"the input {value.name} is no tensor of {', '.join(NAMES.values())}, which Lamina serves"
    )


def _vocabulary(model: Any, name: str) -> int | None:  # noqa: ANN401
    """The largest valid id of a table indexed by an input."""
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    rows = [
        tables[node.input[0]].dims[0]
        for node in model.graph.node
        if node.op_type == "Gather" and node.input[1] == name and node.input[0] in tables
    ]
    return min(rows) - 1 if rows else None


def _declared(given: Sequence[Declared], declared: Sequence[Declared]) -> list[Declared]:
    """The file's inputs, with a size for each place but the first."""
    if declared and len(declared) != len(given):
        names = ", ".join(g.name for g in given)
        raise ArgumentError(
            f"the file takes {len(given)} inputs ({names}), {len(declared)} are declared"
        )
    found = []
    for own, wanted in zip(given, declared or given, strict=True):
        fits = len(own.shape) == len(wanted.shape) and all(
            w == -1 or o in (-1, w) for o, w in zip(own.shape, wanted.shape, strict=True)
        )
        if not fits or own.datatype != wanted.datatype:
            raise ArgumentError(
                f"the input {own.name} is {own.datatype} {_text(own.shape)} in the file, not "
                f"{wanted.datatype} {_text(wanted.shape)}; -1 is any size"
            )
        shape = tuple(o if o != -1 else w for o, w in zip(own.shape, wanted.shape, strict=True))
        if -1 in shape[1:]:
            raise ArgumentError(
                f"the input {own.name} is {own.datatype} {_text(own.shape)}: declare a size to try "
                f"it with, such as --input {own.name}:{own.datatype}:"
                f"{_text([-1, *(128 if s == -1 else s for s in shape[1:])])}"
            )
        low, high = (wanted.low, wanted.high) if wanted.low is not None else (own.low, own.high)
        found.append(replace(wanted, shape=shape, low=low, high=high))
    return found


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _example(inputs: Sequence[Declared], rows: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [_drawn(each, rows, generator) for each in inputs]


def _drawn(declared: Declared, rows: int, generator: torch.Generator) -> Tensor:
    shape = [rows if size == -1 else size for size in declared.shape]
    dtype = next(d for d, name in NAMES.items() if name == declared.datatype)
    if dtype.is_floating_point and declared.low is None:
        return torch.randn(shape, generator=generator).to(dtype)
    low, high = (0.0, 1.0) if declared.low is None else (declared.low, declared.high or 0.0)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64) * (high - low) + low
    return (drawn if dtype.is_floating_point else drawn.round()).to(dtype)


def _program(
    network: _Network, inputs: Sequence[Declared], given: Sequence[Declared]
) -> ExportedProgram:
    # As free as the file says, or as the graph leaves it.
    free = tuple(
        {place: Dim.AUTO for place, size in enumerate(own.shape) if size == -1} for own in given
    )
    example = tuple(_example(inputs, _ROWS, _SEED))
    try:
        program = torch.export.export(network, example, dynamic_shapes=(free,))
    except Exception as error:  # a network's Python throws without a common type
        raise ExportError(f"torch.export does not take the network: {said(error)}") from error
    # The tensors that were replaced by numbers.
    program.graph.eliminate_dead_code()
    return program


def _session(file: Path) -> Any:  # noqa: ANN401
    runtime = needed("onnxruntime", _EXTRA)
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"ONNX Runtime does not take {file}: {said(error)}") from error


def _difference(
    session: Any,  # noqa: ANN401
    path: str | os.PathLike[str],
    inputs: Sequence[Declared],
    *,
    is_free: bool,
) -> tuple[float, list[int]]:
    """The largest difference from ONNX Runtime, as a share of the largest number; and batches."""
    loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    batches = list(_BATCHES) if is_free else [inputs[0].shape[0] if inputs[0].shape else 1]
    worst = 0.0
    for batch in batches:
        request = _example(inputs, batch, _SEED + batch)
        named = {n.name: t.numpy() for n, t in zip(session.get_inputs(), request, strict=True)}
        expected = [torch.as_tensor(a) for a in session.run(None, named)]
        actual = list(_leaves(loaded(*request)))
        if [t.shape for t in expected] != [t.shape for t in actual]:
            return float("inf"), batches
        for left, right in zip(expected, actual, strict=True):
            worst = max(worst, _share(left.double(), right.double()))
    return worst, batches


def _leaves(answer: object) -> Iterator[Tensor]:
    if isinstance(answer, Tensor):
        yield answer
    elif isinstance(answer, list | tuple):
        for part in answer:
            yield from _leaves(part)


def _share(left: Tensor, right: Tensor) -> float:
    if left.numel() == 0 or torch.equal(left, right):
        return 0.0
    same = (left == right) | (left.isnan() & right.isnan())
    difference = torch.where(same, 0.0, (left - right).abs()).max()
    largest = torch.where(left.isfinite(), left.abs(), 0.0).max().clamp(min=1e-12)
    return float((difference / largest).nan_to_num(nan=float("inf")))
