"""Operations of a graph on numbers, in TorchScript."""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

aten = torch.ops.aten

NUMBERS: dict[Callable[..., Any], str] = {
    operator.add: "({} + {})",
    operator.sub: "({} - {})",
    operator.mul: "({} * {})",
    operator.floordiv: "({} // {})",
    operator.truediv: "({} / {})",
    operator.mod: "({} % {})",
    operator.neg: "(-{})",
    operator.eq: "({} == {})",
    operator.ne: "({} != {})",
    operator.lt: "({} < {})",
    operator.le: "({} <= {})",
    operator.gt: "({} > {})",
    operator.ge: "({} >= {})",
    operator.and_: "({} and {})",
    operator.or_: "({} or {})",
    operator.not_: "(not {})",
    torch.sym_max: "max({}, {})",
    torch.sym_min: "min({}, {})",
    torch.sym_not: "(not {})",
    torch.sym_int: "int({})",
    torch.sym_float: "float({})",
    torch.sym_ite: "({1} if {0} else {2})",
    math.floor: "torch.ops.aten.floor(float({}))",
    math.ceil: "torch.ops.aten.ceil(float({}))",
    math.trunc: "int({})",
    operator.pow: "torch.ops.aten.pow({}, {})",
    torch._sym_sqrt: "torch.ops.aten.sqrt({})",  # type: ignore[attr-defined]
    aten.sym_size.int: "{}.size({})",
    aten.sym_numel.default: "{}.numel()",
    aten.sym_stride.int: "{}.stride({})",
    aten.sym_storage_offset.default: "{}.storage_offset()",
}
"""Pure functions of numbers and of a tensor's shape."""

ITEMS = (aten.item.default, aten._local_scalar_dense.default)
"""A tensor's only value as a number."""

DROPPED = (
    aten._assert_tensor_metadata.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
)
"""State what the graph holds for true; nothing is computed."""

COPIES = (aten.lift_fresh_copy.default,)
"""Give a constant of the graph as a tensor that may be written to."""

VIEWS = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)
"""Take a shape of which one size may be left out."""
