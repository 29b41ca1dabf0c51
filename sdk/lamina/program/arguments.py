"""Inputs of a program, and requests for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from lamina.datatypes import NAMES
from lamina.errors import ArgumentError, ExportError
from lamina.program import sizes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.export import ExportedProgram
    from torch.fx import Node

    from lamina.program.sizes import Expression

NUMBER_TYPE = torch.int64
"""In which the file takes what is a whole number in Python."""


@dataclass(frozen=True)
class Declared:
    """An input as declared by `--input`.

    Attributes:
        name: for clients.
        datatype: its name in the Open Inference Protocol.
        shape: -1 for free sizes.
        low: smallest value of a request, with `high`; None if any will do.
        high: largest value.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Argument:
    """An argument of the file.

    Attributes:
        name: the program's, or the declared one.
        dtype: of its tensor.
        sizes: numbers, and the program's expressions for free ones.
        example: a value used for the program's export, if the file holds one.
        low: smallest value to draw, with `high`; None if any will do.
        high: largest value.
        number: the expression of an integer that the file takes as a tensor.
    """

    name: str
    dtype: torch.dtype
    sizes: tuple[int | Expression, ...]
    example: Tensor | None
    low: float | None = None
    high: float | None = None
    number: Expression | None = None

    def draw(self, values: Mapping[Expression, int], generator: torch.Generator) -> Tensor:
        """A request with the sizes that `values` assigns to the symbols."""
        if self.number is not None:
            return torch.tensor(size_at(self.number, values), dtype=self.dtype)
        shape = [size_at(s, values) for s in self.sizes]
        if self.low is not None and self.high is not None:
            return _between(self.low, self.high, shape, self.dtype, generator)
        if self.example is None or self.example.numel() == 0:
            return _normal(shape, self.dtype, generator)
        return _like(self.example, shape, generator)


@dataclass(frozen=True)
class Arguments:
    """All arguments of a program.

    Attributes:
        tensors: inputs of the file, in order.
        fixed: values that the program fixes, by their index among all leaves.
        structure: the nesting of the leaves in a call of the program.
        example_sizes: values of the symbols when the program was exported.
    """

    tensors: tuple[Argument, ...]
    fixed: dict[int, object]
    structure: pytree.TreeSpec
    example_sizes: dict[Expression, int]

    @property
    def batch(self) -> Expression | None:
        """The symbol of the free batch: the first dimension of the first input that has it free."""
        for argument in self.tensors:
            if argument.sizes and not isinstance(argument.sizes[0], int):
                first = argument.sizes[0]
                return first if first.is_Symbol else None
        return None

    def together(self) -> list[list[Expression]]:
        """Free sizes that requests choose together, the batch first.

        A program that never compares the batches of its inputs has a symbol for each. Sizes that
        are
        equal at the same position are treated as one.
        """
        groups: dict[object, list[Expression]] = {}
        for argument in self.tensors:
            for place, size in enumerate((*argument.sizes, argument.number)):
                if size is None or isinstance(size, int):
                    continue
                for symbol in size.free_symbols:
                    alone = size.is_Symbol and place < len(argument.sizes)
                    key = (place, self.example_sizes[symbol]) if alone else symbol
                    groups.setdefault(key, []).append(symbol)
        seen: set[Expression] = set()
        found = []
        for group in groups.values():
            fresh = [s for s in dict.fromkeys(group) if s not in seen]
            seen.update(fresh)
            if fresh:
                found.append(fresh)
        return sorted(found, key=lambda group: self.batch not in group)

    def examples(self) -> list[Tensor] | None:
        """The values used for the program's export."""
        found = [a.example for a in self.tensors if a.example is not None]
        return found if len(found) == len(self.tensors) else None

    def call(self, values: Sequence[Tensor]) -> tuple[list[object], dict[str, object]]:
        """The positional and keyword arguments of the program for `values`."""
        waiting = iter(
            int(v) if a.number is not None else v for a, v in zip(self.tensors, values, strict=True)
        )
        leaves = [
            self.fixed[place] if place in self.fixed else next(waiting)
            for place in range(self.structure.num_leaves)
        ]
        places, names = pytree.tree_unflatten(leaves, self.structure)
        return list(places), dict(names)


def shapes(program: ExportedProgram) -> list[tuple[int, ...]]:
    """The shapes of a program's tensors, -1 for free sizes."""
    nodes = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    users = [nodes[str(name)] for name in program.graph_signature.user_inputs if name in nodes]
    return [sizes.shape(value) for value in users if isinstance(value, Tensor)]


def read(program: ExportedProgram, declared: Sequence[Declared]) -> Arguments:
    """Reads the arguments of `program`, with names and ranges from `declared` if given.

    Raises:
        ArgumentError: if `declared` does not match the program.
        ExportError: if Lamina cannot serve one of them.
    """
    structure = program.call_spec.in_spec
    if structure is None:
        raise ExportError("the program does not say how it is called: export it again")
    nodes = [n for n in program.graph.nodes if n.op == "placeholder"]
    pairs = zip(nodes, program.graph_signature.input_specs, strict=True)
    users = [(n, s) for n, s in pairs if s.kind is InputKind.USER_INPUT]
    examples = _examples(program, structure)
    tensors: list[Argument] = []
    fixed: dict[int, object] = {}
    hints: dict[Expression, int] = {}
    for place, (node, spec) in enumerate(users):
        if isinstance(spec.arg, ConstantArgument):
            fixed[place] = spec.arg.value
        else:
            tensors.append(_argument(node, examples[place] if examples else None, hints))
    if not tensors:
        raise ExportError("the program takes no tensor: there is nothing to ask it")
    return Arguments(_declared(tensors, declared), fixed, structure, hints)


def _examples(program: ExportedProgram, structure: pytree.TreeSpec) -> list[object] | None:
    if program.example_inputs is None:
        return None
    places, names = program.example_inputs
    # As the program orders them, whatever the given order.
    wanted = structure.children()[1].context if structure.num_children == 2 else list(names)
    leaves: list[object] = pytree.tree_leaves((places, {k: names[k] for k in wanted}))
    return leaves if len(leaves) == structure.num_leaves else None


def _argument(node: Node, example: object, hints: dict[Expression, int]) -> Argument:
    stand_in = node.meta.get("val")
    if isinstance(stand_in, torch.SymInt):
        number = sizes.expression(stand_in)
        _hint(stand_in, hints)
        value = None if example is None else torch.tensor(example, dtype=NUMBER_TYPE)
        return Argument(node.name, NUMBER_TYPE, (), value, number=number)
    if not isinstance(stand_in, Tensor) or stand_in.dtype not in NAMES:
        kind = stand_in.dtype if isinstance(stand_in, Tensor) else type(stand_in).__name__
        raise ExportError(
            f"the input {node.name} is a {kind}: Lamina serves tensors of "
            f"{', '.join(NAMES.values())}"
        )
    for size in stand_in.shape:
        _hint(size, hints)
    found = tuple(sizes.expression(s) or int(s) for s in stand_in.shape)
    value = example.detach().cpu() if isinstance(example, Tensor) else None
    return Argument(node.name, stand_in.dtype, found, value)


def _hint(size: object, hints: dict[Expression, int]) -> None:
    """Learns a symbol's value from a size that contains no other symbol."""
    wanted = sizes.expression(size)
    if wanted is None or len(wanted.free_symbols) != 1:
        return
    (symbol,) = wanted.free_symbols
    per = wanted.coeff(symbol, 1)
    assert isinstance(size, torch.SymInt)
    if per.is_Integer and size.node.hint is not None:
        hints.setdefault(symbol, int((int(size.node.hint) - wanted.coeff(symbol, 0)) / per))


def _declared(tensors: Sequence[Argument], declared: Sequence[Declared]) -> tuple[Argument, ...]:
    if not declared:
        return tuple(tensors)
    if len(declared) != len(tensors):
        names = ", ".join(a.name for a in tensors)
        raise ArgumentError(
            f"the program takes {len(tensors)} inputs ({names}), {len(declared)} are declared"
        )
    return tuple(_named(a, d) for a, d in zip(tensors, declared, strict=True))


def _named(argument: Argument, declared: Declared) -> Argument:
    datatype = NAMES[argument.dtype]
    shape = tuple(s if isinstance(s, int) else -1 for s in argument.sizes)
    fits = len(shape) == len(declared.shape) and all(
        has in (-1, wanted) for has, wanted in zip(shape, declared.shape, strict=True)
    )
    if datatype != declared.datatype or not fits:
        raise ArgumentError(
            f"the input {declared.name} is {datatype} {format_shape(shape)} in the program, not "
            f"{declared.datatype} {format_shape(declared.shape)}; -1 is any size"
        )
    return replace(argument, name=declared.name, low=declared.low, high=declared.high)


def format_shape(shape: Sequence[int]) -> str:
    """As on the command line, `-1x3x224x224`."""
    return "x".join(map(str, shape))


def size_at(size: int | Expression, values: Mapping[Expression, int]) -> int:
    """A size for the symbols' `values`."""
    return size if isinstance(size, int) else int(size.subs(dict(values)))


def _between(
    low: float, high: float, shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    drawn = torch.rand(*shape, generator=generator, dtype=torch.float64) * (high - low) + low
    whole = not dtype.is_floating_point
    return (drawn.round() if whole else drawn).to(dtype)


def _normal(shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point:
        return torch.randn(*shape, generator=generator).to(dtype)
    # No other value is certain to be in a vocabulary.
    return torch.randint(2, tuple(shape), generator=generator).to(dtype)


def _like(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Values of the example in another order, so that each may occur."""
    flat = example.reshape(-1)
    if example.dtype.is_floating_point and bool((flat == flat[0]).all()):
        return _normal(shape, example.dtype, generator)
    return flat[torch.randint(flat.numel(), tuple(shape), generator=generator)]
