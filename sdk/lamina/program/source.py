"""TorchScript of a program's graph."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor
from torch._ops import HigherOrderOperator, OpOverload
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymIntArgument,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from lamina.errors import ExportError
from lamina.program import operators, sizes
from lamina.program.literals import literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.export import ExportedProgram
    from torch.export.graph_signature import InputSpec
    from torch.fx import GraphModule, Node

_Value: TypeAlias = "str | tuple[_Value, ...]"
"""An expression, or one for each item of a tuple or list that is taken apart."""

_NAMESPACE = "aten"
"""Of the operators that libtorch has by itself."""

_TAKEN = {
    *("self", "torch", "Tensor", "List", "Optional", "RuntimeError"),
    *("int", "float", "bool", "complex", "min", "max"),
    *keyword.kwlist,
}


@dataclass(frozen=True)
class Source:
    """A network as TorchScript.

    Attributes:
        code: of `forward`, a method.
        tensors: those read from `self`, by name.
        parameters: names of those that are weights.
        operators: number of operator calls.
        dropped_inputs: arguments fixed at the exported value, as text.
    """

    code: str
    tensors: dict[str, Tensor]
    parameters: frozenset[str]
    operators: int
    dropped_inputs: tuple[str, ...]


def source(program: ExportedProgram) -> Source:
    """The TorchScript of `program`, with the same free sizes.

    Raises:
        ExportError: with the operator or argument that TorchScript lacks.
    """
    writer = _Writer()
    arguments, dropped = writer.inputs(program)
    outputs = writer.nodes(program.graph_module)
    answer = _answer(program, outputs)
    code = "\n".join(
        (f"def forward({', '.join(['self', *arguments])}):", *writer.text(answer), f"    {answer}")
    )
    return Source(
        code=code + "\n",
        tensors=writer.tensors,
        parameters=frozenset(writer.parameters),
        operators=writer.operators,
        dropped_inputs=tuple(dropped),
    )


@dataclass(frozen=True)
class _Line:
    """One statement; dropped if nothing reads a name that it `defines`."""

    text: str
    defines: str | None = None


class _Writer:
    """Writes the statements in order."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.parameters: set[str] = set()
        self.operators = 0
        self._attributes: dict[int, str] = {}
        self._lines: list[_Line] = []
        self._depth = 1
        self._names = set(_TAKEN)
        self._values: dict[Node, _Value] = {}

    def text(self, answer: str) -> list[str]:
        """The statements, without numbers that neither they nor `answer` need."""
        used = set(_words(answer))
        kept: list[str] = []
        for line in reversed(self._lines):
            if line.defines is None or line.defines in used:
                used.update(_words(line.text))
                kept.append(line.text)
        return kept[::-1]

    def inputs(self, program: ExportedProgram) -> tuple[list[str], list[str]]:
        """The arguments of `forward`, without the fixed ones."""
        arguments, dropped = [], []
        nodes = [n for n in program.graph.nodes if n.op == "placeholder"]
        for node, spec in zip(nodes, program.graph_signature.input_specs, strict=True):
            if spec.kind is not InputKind.USER_INPUT:
                if not node.users:
                    continue  # held by the network, and not an input
                self._values[node] = "self." + self._held(program, node, spec)
            elif isinstance(spec.arg, ConstantArgument):
                self._values[node] = _constant(spec.arg.value, node.name)
                dropped.append(f"{node.name} = {spec.arg.value!r}")
            else:
                arguments.append(self._argument(node, spec) + ": Tensor")
        return arguments, dropped

    def _held(self, program: ExportedProgram, node: Node, spec: InputSpec) -> str:
        """The attribute with a weight, a buffer or a constant."""
        tensor = program.state_dict.get(spec.target or "")
        if tensor is None:
            tensor = program.constants.get(spec.target or "")
        if not isinstance(tensor, Tensor):
            raise ExportError(
                f"{spec.target or node.name} is a {spec.kind.name.lower()}, which TorchScript "
                "cannot hold: export a network whose state is tensors alone"
            )
        name = self._attribute(tensor, node.name)
        if spec.kind is InputKind.PARAMETER:
            self.parameters.add(name)
        return name

    def _attribute(self, tensor: Tensor, name: str) -> str:
        """One attribute per tensor, also for tied weights."""
        if id(tensor) not in self._attributes:
            fresh = self._fresh(name)
            self.tensors[fresh] = tensor
            self._attributes[id(tensor)] = fresh
        return self._attributes[id(tensor)]

    def _argument(self, node: Node, spec: InputSpec) -> str:
        name = self._fresh(node.name)
        if isinstance(spec.arg, TensorArgument):
            self._values[node] = name
        elif isinstance(spec.arg, SymIntArgument):
            # A served model takes tensors.
            self._values[node] = self._define(node.name, f"int({name})")
        else:
            raise ExportError(
                f"the input {node.name} is neither a tensor nor a whole number: export with a "
                "tensor in its place"
            )
        return name

    def nodes(self, module: GraphModule) -> list[_Value]:
        """Writes a graph and returns its outputs."""
        for node in module.graph.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "get_attr":
                self._get(node, module)
            elif node.op == "output":
                return [self._value(item, node) for item in node.args[0]]
            elif node.op != "placeholder":
                raise ExportError(f"{node.format_node()}: its graph is not one of torch.export")
        return []

    def _get(self, node: Node, module: GraphModule) -> None:
        held = module
        for part in str(node.target).split("."):
            held = getattr(held, part)
        if isinstance(held, Tensor):
            self._values[node] = "self." + self._attribute(held, node.name)

    def _call(self, node: Node) -> None:
        target = node.target
        if target in operators.DROPPED:
            return
        if isinstance(target, HigherOrderOperator):
            self._values[node] = self._higher_order(node, target)
        elif target in operators.NUMBERS:
            self._number(node)
        elif getattr(target, "__name__", "") == "getitem":
            self._values[node] = self._item(node)
        elif target is torch.ops.aten._assert_scalar.default:
            self._check(node)
        elif target in operators.ITEMS:
            tensor = self._text(node.args[0], node)
            self._values[node] = self._define(node.name, f"{_kind_of_number(node)}({tensor})")
        elif isinstance(target, OpOverload):
            self._operator(node, target)
        else:
            raise ExportError(
                f"TorchScript has nothing for {_name_of(target)} ({node.name} in the graph)"
            )

    def _number(self, node: Node) -> None:
        target = node.target
        assert callable(target)
        operands = [self._text(a, node) for a in node.args]
        text = operators.NUMBERS[target].format(*operands)
        kind = _kind_of_number(node)
        if "torch.ops" in text and kind == "int":
            text = f"int({text})"  # TorchScript's powers are floats
        name = self._fresh(node.name)
        self._statement(f"{name} = {text}", name)
        self._values[node] = name

    def _check(self, node: Node) -> None:
        """A condition of the export that requests must meet."""
        condition, message = self._text(node.args[0], node), literal(str(node.args[1]))
        self._statement(f"if not {condition}:")
        self._statement(f"    raise RuntimeError({message})")

    def _item(self, node: Node) -> _Value:
        whole, place = node.args[0], node.args[1]
        value = self._values[whole] if isinstance(whole, torch.fx.Node) else ""
        if isinstance(value, tuple):
            assert isinstance(place, int)
            return value[place]
        return self._define(node.name, f"{value}[{self._text(place, node)}]")

    def _operator(self, node: Node, operator: OpOverload) -> None:
        if operator.namespace != _NAMESPACE:
            raise ExportError(
                f"the operator {operator} ({node.name} in the graph) is none of libtorch's: leave "
                "that step to the client, or write it with PyTorch's own operators"
            )
        self.operators += 1
        text = self._call_text(node, operator)
        if not operator._schema.returns:
            self._statement(text)
            return
        count = _items(node)
        if count is None:
            self._values[node] = self._define(node.name, text)
            return
        names = tuple(self._fresh(f"{node.name}_{place}") for place in range(count))
        self._statement(f"{', '.join(names)} = {text}")
        self._values[node] = names

    def _call_text(self, node: Node, operator: OpOverload) -> str:
        arguments = operator._schema.arguments
        given = list(zip(node.args, arguments, strict=False))
        texts = [self._given(value, str(a.type), node) for value, a in given]
        if operator in operators.COPIES:
            return f"torch.ops.aten.clone({texts[0]})"
        if operator is torch.ops.aten.addmm.default and _is_linear(node):
            return f"torch.ops.aten.linear({texts[1]}, torch.ops.aten.t({texts[2]}), {texts[0]})"
        if operator in operators.VIEWS:
            texts[1] = self._view_shape(node) or texts[1]
        kinds = {a.name: str(a.type) for a in arguments}
        for name, value in node.kwargs.items():
            texts.append(f"{name}={self._given(value, kinds[name], node)}")
        return f"torch.ops.{operator._schema.name.replace('::', '.')}({', '.join(texts)})"

    def _given(self, value: object, kind: str, node: Node) -> str:
        """An operand, converted to the type that the operator expects."""
        if isinstance(value, list | tuple):
            items = [self._given(v, kind, node) for v in value]
            text = f"[{', '.join(items)}]"
            if not items or kind == "List[Optional[Tensor]]":
                return f"torch.jit.annotate({_plain(kind)}, {text})"
            return text
        if isinstance(value, torch.fx.Node) and isinstance(value.meta.get("val"), torch.SymInt):
            text = self._size(value, node)
            return f"float({text})" if kind == "float" else text
        return self._text(value, node, kind)

    def _view_shape(self, node: Node) -> str | None:
        """The shape with -1 for its only free size, so that it is inferred."""
        shape = node.args[1]
        if not isinstance(shape, list | tuple):
            return None
        free = [place for place, size in enumerate(shape) if not isinstance(size, int)]
        if len(free) != 1 or any(isinstance(s, int) and s < 1 for s in shape):
            return None
        return f"[{', '.join('-1' if p in free else str(s) for p, s in enumerate(shape))}]"

    def _size(self, size: Node, user: Node) -> str:
        wanted = sizes.expression(size.meta["val"])
        if wanted is not None:
            near = sizes.from_tensors(wanted, self._operands(user))
            if near is not None:
                return near
        return self._text(size, user)

    def _operands(self, node: Node) -> Iterator[tuple[str, Tensor]]:
        for operand in node.all_input_nodes:
            name, stand_in = self._values.get(operand), operand.meta.get("val")
            if isinstance(name, str) and isinstance(stand_in, Tensor):
                yield name, stand_in

    def _higher_order(self, node: Node, operator: HigherOrderOperator) -> _Value:
        name = operator.__name__
        if name == "wrap_with_set_grad_enabled":
            return self._inline(node.args[1], node.args[2:], node)
        if name == "wrap_with_autocast" and (node.args[0] != "cpu" or node.args[2] is False):
            return self._inline(node.args[4], node.args[5:], node)
        if name == "cond":
            return self._branches(node)
        raise ExportError(
            f"TorchScript has nothing for {name} ({node.name} in the graph): write that part "
            "without it"
        )

    def _inline(self, graph: object, operands: Sequence[object], user: Node) -> tuple[_Value, ...]:
        """Writes an inner graph at this place."""
        assert isinstance(graph, torch.fx.Node)
        held: object = graph.graph.owning_module
        for part in str(graph.target).split("."):
            held = getattr(held, part)
        assert isinstance(held, torch.fx.GraphModule)
        places = [n for n in held.graph.nodes if n.op == "placeholder"]
        for place, operand in zip(places, operands, strict=True):
            self._values[place] = self._value(operand, user)
        return tuple(self.nodes(held))

    def _branches(self, node: Node) -> tuple[_Value, ...]:
        condition, yes, no, *rest = node.args
        operands = rest[0] if rest else ()
        assert isinstance(operands, list | tuple)
        names: tuple[str, ...] = ()
        for head, graph in ((f"if bool({self._text(condition, node)}):", yes), ("else:", no)):
            self._statement(head)
            self._depth += 1
            outputs = [_single(o, node) for o in self._inline(graph, operands, node)]
            names = names or tuple(self._fresh(node.name) for _ in outputs)
            for name, output in zip(names, outputs, strict=True):
                self._statement(f"{name} = {output}")
            if not names:
                self._statement("pass")
            self._depth -= 1
        return names

    def _value(self, item: object, user: Node) -> _Value:
        if isinstance(item, torch.fx.Node):
            return self._values[item]
        return self._text(item, user)

    def _text(self, item: object, user: Node, kind: str = "") -> str:
        if isinstance(item, torch.fx.Node):
            if item not in self._values:
                raise ExportError(f"{item.name} is read by {user.name} before it is there")
            return _single(self._values[item], item)
        if isinstance(item, list | tuple):
            return f"[{', '.join(self._text(i, user, kind) for i in item)}]"
        return _constant(item, user.name, kind)

    def _define(self, name: str, text: str) -> str:
        fresh = self._fresh(name)
        self._statement(f"{fresh} = {text}")
        return fresh

    def _statement(self, text: str, defines: str | None = None) -> None:
        self._lines.append(_Line("    " * self._depth + text, defines))

    def _fresh(self, wanted: str) -> str:
        name, count = wanted, 0
        while name in self._names:
            count += 1
            name = f"{wanted}__{count}"
        self._names.add(name)
        return name


def _answer(program: ExportedProgram, outputs: Sequence[_Value]) -> str:
    """The statement that returns the program's outputs, in their nesting."""
    specs = program.graph_signature.output_specs
    mutated = [s.target for s in specs if s.kind is OutputKind.BUFFER_MUTATION]
    if mutated:
        raise ExportError(
            f"the network overwrites its own {', '.join(map(str, mutated))}: call eval() before "
            "exporting, or make it an input and an output"
        )
    pairs = zip(specs, outputs, strict=True)
    answers = [_single(o, None) for s, o in pairs if s.kind is OutputKind.USER_OUTPUT]
    spec = program.call_spec.out_spec
    if spec is None or spec.num_leaves != len(answers):
        return f"return {_tuple(answers)}"
    try:
        nested = pytree.tree_unflatten(answers, spec)
    except Exception:  # from a class that expects more than texts
        return f"return {_tuple(answers)}"
    return f"return {_nested(nested) or _tuple(answers)}"


def _nested(value: object) -> str | None:
    """Texts in their nesting; None if TorchScript does not support it."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return _mapping(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _mapping({f.name: getattr(value, f.name) for f in fields(value)})
    if isinstance(value, Sequence):
        items = [_nested(v) for v in value]
        return None if None in items else _tuple([i for i in items if i is not None])
    return None


def _mapping(value: Mapping[object, object]) -> str | None:
    """A dictionary of tensors; TorchScript has none of mixed types."""
    given = {k: v for k, v in value.items() if v is not None and v != "None"}
    if not given or not all(isinstance(k, str) and isinstance(v, str) for k, v in given.items()):
        return None
    return "{" + ", ".join(f"{literal(k)}: {v}" for k, v in given.items()) + "}"


def _tuple(texts: Sequence[str]) -> str:
    return f"({', '.join(texts)}{',' if len(texts) == 1 else ''})"


def _single(value: _Value, node: Node | None) -> str:
    if isinstance(value, str):
        return value
    return f"[{', '.join(_single(v, node) for v in value)}]"


def _constant(value: object, place: str, kind: str = "") -> str:
    text = literal(value, kind)
    if text is None:
        raise ExportError(
            f"{place} in the graph takes a {type(value).__name__}, for which TorchScript has no "
            "constant"
        )
    return text


def _is_linear(node: Node) -> bool:
    """Whether an addmm is a layer with a bias.

    TorchScript splits an addmm into a product and a sum, whose last bits differ; a linear
    layer keeps it as one.
    """
    bias = node.args[0]
    stand_in = bias.meta.get("val") if isinstance(bias, torch.fx.Node) else None
    return not node.kwargs and isinstance(stand_in, Tensor) and stand_in.dim() == 1


def _items(node: Node) -> int | None:
    """Number of a node's values if it has several and each is read separately."""
    value = node.meta.get("val")
    if not isinstance(value, list | tuple) or len(value) < 2:
        return None
    alone = all(getattr(user.target, "__name__", "") == "getitem" for user in node.users)
    return len(value) if alone else None


def _kind_of_number(node: Node) -> str:
    value = node.meta.get("val")
    if isinstance(value, bool | torch.SymBool):
        return "bool"
    return "float" if isinstance(value, float | torch.SymFloat) else "int"


def _plain(kind: str) -> str:
    """`Optional[List[int]]` without the Optional, for an empty list."""
    found = re.fullmatch(r"Optional\[(.*)\]", kind)
    return (found[1] if found else kind).replace("number", "float")


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def _name_of(target: object) -> str:
    return str(getattr(target, "__name__", target))
