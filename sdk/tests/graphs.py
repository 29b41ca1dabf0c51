"""What Lamina's slicer looks for in a file: the trunk and the heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Head:
    """The nodes that one exit alone needs, and what they take from before.

    Attributes:
        nodes: how many.
        takes: names of tensors from the trunk or from earlier heads.
        output: name of its logits.
    """

    nodes: int
    takes: frozenset[str]
    output: str


def heads(path: Path) -> tuple[int, list[Head]]:
    """The number of nodes of the trunk (the backward closure of the last output) and
    the heads (the closures of the others, without the trunk and earlier heads)."""
    module = torch.jit.load(str(path)).eval()  # type: ignore[no-untyped-call]
    graph = torch._C._freeze_module(module._c).forward.graph  # type: ignore[attr-defined]
    torch._C._jit_pass_inline(graph)
    torch._C._jit_pass_lower_all_tuples(graph)
    torch._C._jit_pass_dce(graph)
    exits = list(graph.outputs())
    if len(exits) == 1:
        exits = list(exits[0].node().inputs())
    taken = _closure(exits[-1])
    trunk = len(taken)
    found = []
    for value in exits[:-1]:
        own = {k: n for k, n in _closure(value).items() if k not in taken}
        takes = {
            v.debugName()
            for node in own.values()
            for v in node.inputs()
            if _is_data(v) and _key(v.node()) not in own
        }
        found.append(Head(len(own), frozenset(takes), value.debugName()))
        taken |= own
    return trunk, found


def _closure(value: Any) -> dict[str, Any]:  # noqa: ANN401, torch's graph has no types
    """The nodes that `value` needs, constants left out."""
    found: dict[str, Any] = {}
    waiting = [value]
    while waiting:
        node = waiting.pop().node()
        if node.kind() in ("prim::Param", "prim::Constant") or _key(node) in found:
            continue
        found[_key(node)] = node
        waiting.extend(node.inputs())
    return found


def _is_data(value: Any) -> bool:  # noqa: ANN401
    return bool(value.node().kind() != "prim::Constant" and value.type().kind() == "TensorType")


def _key(node: Any) -> str:  # noqa: ANN401
    return ",".join(v.debugName() for v in node.outputs())
