"""Treats tensors that hold sizes as numbers.

ONNX computes shapes with tensors. torch.export knows nothing of a tensor's elements, so a shape
made from them is free in each of its sizes. Here such tensors keep the numbers they were made
from.
"""

from __future__ import annotations

import math
import operator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MOST = 64
"""Elements of a tensor that is looked at; shapes have few."""

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)


class _UnknownError(Exception):
    """The operation is not supported on numbers."""


def constants(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Any]:
    """The integers in small tensors, by name."""
    return {
        name: tensor.tolist()
        for name, tensor in tensors
        if not tensor.dtype.is_floating_point
        and not tensor.dtype.is_complex
        and tensor.dim() <= 1
        and tensor.numel() <= MOST
    }


class Numbers(TorchFunctionMode):
    """While entered, tensors made of sizes and constants are replaced by numbers where read.

    Args:
        held: tensors and their elements.
    """

    def __init__(self, held: Iterable[tuple[Tensor, Any]]) -> None:
        super().__init__()
        # With the tensor, so that its id is not reused.
        self._known: dict[int, tuple[Tensor, Any]] = {id(t): (t, v) for t, v in held}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - what torch's functions give
        named = dict(kwargs or {})
        if func in _ASKED and id(args[0]) in self._known:
            value = self._known[id(args[0])][1]
            if not _has(value, _Ratio):
                return _ASKED[func](value)
        try:
            value = _RULES[func](*map(self._plain, args), **_without_types(named))
        except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, _UnknownError):
            return func(*self._sizes(func, args), **self._named_sizes(func, named))
        result = func(*self._sizes(func, args), **named)
        self._learn(result, value)
        return result

    def _learn(self, result: object, value: Any) -> None:  # noqa: ANN401
        if isinstance(result, Tensor):
            self._known[id(result)] = (result, value)
        elif isinstance(result, tuple | list):
            for part, number in zip(result, value, strict=True):
                self._learn(part, number)

    def _plain(self, value: Any) -> Any:  # noqa: ANN401
        """Numbers for tensors; no rule for others."""
        if isinstance(value, Tensor):
            if id(value) not in self._known:
                raise _UnknownError
            return self._known[id(value)][1]
        if isinstance(value, slice):
            return slice(*(self._plain(v) for v in (value.start, value.stop, value.step)))
        if isinstance(value, tuple | list):
            return [self._plain(v) for v in value]
        return value

    def _sizes(self, func: Callable[..., Any], args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Numbers in place of sizes among the arguments after the first."""
        if func in _TAKE_NUMBERS:
            return tuple(self._inside(a, alone=True) for a in args)
        found = (*args[:1], *(self._inside(a) for a in args[1:]))
        if func is Tensor.__getitem__ and isinstance(found[1], list):
            # As torch takes a list with slices; with numbers only it would mean another thing.
            return (found[0], tuple(found[1]))
        return found

    def _named_sizes(self, func: Callable[..., Any], named: Mapping[str, Any]) -> dict[str, Any]:
        alone = func in _TAKE_NUMBERS
        return {k: self._inside(v, alone=alone) for k, v in named.items()}

    def _inside(self, value: Any, *, alone: bool = False) -> Any:  # noqa: ANN401
        """`value` with numbers for the scalars in its lists, and for itself if `alone`."""
        if isinstance(value, Tensor):
            known = self._known.get(id(value), (value, None))[1]
            return known if alone and isinstance(known, _NUMBERS) else value
        if isinstance(value, slice):
            ends = (value.start, value.stop, value.step)
            return slice(*(self._inside(v, alone=True) for v in ends))
        if isinstance(value, list | tuple) and all(_is_size(v) for v in value):
            return type(value)(self._inside(v, alone=True) for v in value)
        return value


def _is_size(value: object) -> bool:
    """Possible sizes or indices, including tensors of one number."""
    if isinstance(value, Tensor):
        return value.dim() == 0 or not value.dtype.is_floating_point
    return value is None or value is ... or isinstance(value, (*_NUMBERS, slice))


class _Ratio:
    """A quotient before rounding."""

    def __init__(self, over: Any, under: Any) -> None:  # noqa: ANN401
        self.over, self.under = over, under


def _has(value: object, kind: type) -> bool:
    if isinstance(value, list):
        return any(_has(v, kind) for v in value)
    return isinstance(value, kind)


def _without_types(named: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in named.items() if k not in ("device", "dtype")}


def _made(value: Any) -> Any:  # noqa: ANN401
    """Rule of `torch.tensor`."""
    if isinstance(value, list | tuple | torch.Size):
        if len(value) > MOST:
            raise _UnknownError
        return [_made(v) for v in value]
    if not isinstance(value, int | torch.SymInt):
        raise _UnknownError
    return value


def _same(value: Any, *to: Any) -> Any:  # noqa: ANN401
    """Operations that change neither numbers nor their order."""
    kinds = [k for k in to if isinstance(k, torch.dtype)]
    if any(k.is_floating_point or k.is_complex for k in kinds) or _has(value, _Ratio):
        raise _UnknownError
    return value


def _item(value: Any, place: Any) -> Any:  # noqa: ANN401
    if not isinstance(value, list):
        raise _UnknownError
    if isinstance(place, list) and len(place) == 1:
        (place,) = place
    if isinstance(place, list):
        return [value[operator.index(p)] for p in place]
    return value[place] if isinstance(place, slice) else value[operator.index(place)]


def _joined(parts: Sequence[list[Any]], dim: int = 0) -> list[Any]:
    if dim not in (0, -1) or not all(isinstance(p, list) for p in parts):
        raise _UnknownError
    return [number for part in parts for number in part]


def _stacked(parts: list[Any], dim: int = 0) -> list[Any]:
    if dim not in (0, -1) or any(isinstance(p, list) for p in parts):
        raise _UnknownError
    return parts


def _unsqueezed(value: Any, dim: int) -> list[Any]:  # noqa: ANN401
    if isinstance(value, list) or dim not in (0, -1):
        raise _UnknownError
    return [value]


def _squeezed(value: Any, dim: int = 0) -> Any:  # noqa: ANN401
    if not isinstance(value, list) or len(value) != 1 or dim not in (0, -1):
        raise _UnknownError
    return value[0]


def _reshaped(value: Any, *shape: Any) -> Any:  # noqa: ANN401
    flat = value if isinstance(value, list) else [value]
    wanted = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], list) else list(shape)
    if wanted in ([-1], [len(flat)]):
        return flat
    if not wanted and len(flat) == 1:
        return flat[0]
    raise _UnknownError


def _expanded(value: Any, *shape: Any) -> Any:  # noqa: ANN401
    wanted = list(shape[0]) if len(shape) == 1 and isinstance(shape[0], list) else list(shape)
    if isinstance(value, list) or len(wanted) > 1:
        raise _UnknownError
    if not wanted:
        return value
    if not isinstance(wanted[0], int) or not 0 <= wanted[0] <= MOST:
        raise _UnknownError
    return [value] * wanted[0]


def _each(function: Callable[..., Any]) -> Callable[..., Any]:
    """Element by element, with broadcasting of single ones."""

    def over(*values: Any, **_: object) -> Any:  # noqa: ANN401
        lengths = {len(v) for v in values if isinstance(v, list)} - {1}
        if _has(list(values), _Ratio) and function is not _rounded:
            raise _UnknownError
        if not any(isinstance(v, list) for v in values):
            return function(*values)
        if len(lengths) > 1:
            raise _UnknownError
        count = lengths.pop() if lengths else 1
        rows = (
            (v if len(v) == count else v * count) if isinstance(v, list) else [v] * count
            for v in values
        )
        return [function(*row) for row in zip(*rows, strict=True)]

    return over


def _rounded(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, _Ratio):
        # Sizes are not negative, so the rounding direction does not matter.
        return value.over // value.under
    raise _UnknownError


def _chosen(condition: Any, yes: Any, no: Any) -> Any:  # noqa: ANN401
    return yes if condition else no


def _counted(*ends: Any) -> list[int]:  # noqa: ANN401
    if not all(isinstance(e, int) for e in ends) or len(found := range(*ends)) > MOST:
        raise _UnknownError
    return list(found)


def _reduced(function: Callable[[list[Any]], Any]) -> Callable[..., Any]:
    def over(value: Any, *dims: Any, dim: Any = None, keepdim: bool = False) -> Any:  # noqa: ANN401
        if not isinstance(value, list) or _has(value, _Ratio):
            raise _UnknownError
        wanted = [dim, *dims] if dim is not None else list(dims)
        if any(d not in (0, -1, [0], [-1], None) for d in wanted[:1]) or len(wanted) > 1:
            raise _UnknownError
        found = function(value)
        return [found] if keepdim else found

    return over


_RULES: dict[Any, Callable[..., Any]] = {
    torch.tensor: _made,
    **dict.fromkeys(
        (
            *(Tensor.to, Tensor.clone, Tensor.contiguous, Tensor.long, Tensor.int),
            *(Tensor.detach, Tensor.cpu, torch.clone, torch.as_tensor),
        ),
        _same,
    ),
    torch.atleast_1d: lambda value: value if isinstance(value, list) else [value],
    Tensor.__getitem__: _item,
    **dict.fromkeys((torch.cat, torch.concat), _joined),
    torch.stack: _stacked,
    **dict.fromkeys((torch.unsqueeze, Tensor.unsqueeze), _unsqueezed),
    **dict.fromkeys((torch.squeeze, Tensor.squeeze), _squeezed),
    **dict.fromkeys((torch.reshape, Tensor.reshape, Tensor.view), _reshaped),
    Tensor.expand: _expanded,
    **dict.fromkeys((torch.unbind, Tensor.unbind), lambda value, dim=0: _joined([value], dim)),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__), _each(operator.add)),
    **dict.fromkeys((torch.sub, Tensor.sub, Tensor.__sub__), _each(operator.sub)),
    **dict.fromkeys((torch.mul, Tensor.mul, Tensor.__mul__), _each(operator.mul)),
    **dict.fromkeys((torch.floor_divide, Tensor.__floordiv__), _each(operator.floordiv)),
    **dict.fromkeys((torch.true_divide, torch.div, Tensor.__truediv__), _each(_Ratio)),
    **dict.fromkeys((torch.trunc, torch.floor, Tensor.trunc), _each(_rounded)),
    **dict.fromkeys((torch.remainder, torch.fmod), _each(operator.mod)),  # of sizes, from 0 on
    torch.maximum: _each(torch.sym_max),
    torch.minimum: _each(torch.sym_min),
    **dict.fromkeys((torch.neg, Tensor.neg, Tensor.__neg__), _each(operator.neg)),
    **dict.fromkeys((torch.eq, Tensor.eq, Tensor.__eq__), _each(operator.eq)),
    **dict.fromkeys((torch.ne, Tensor.ne, Tensor.__ne__), _each(operator.ne)),
    **dict.fromkeys((torch.lt, Tensor.lt, Tensor.__lt__), _each(operator.lt)),
    **dict.fromkeys((torch.gt, Tensor.gt, Tensor.__gt__), _each(operator.gt)),
    **dict.fromkeys((torch.le, Tensor.le, Tensor.__le__), _each(operator.le)),
    **dict.fromkeys((torch.ge, Tensor.ge, Tensor.__ge__), _each(operator.ge)),
    torch.where: _each(_chosen),
    torch.arange: _counted,
    **dict.fromkeys((torch.prod, Tensor.prod), _reduced(math.prod)),
    **dict.fromkeys((torch.sum, Tensor.sum), _reduced(sum)),
}
"""Functions of numbers, in place of those of the tensors that hold them."""

_ASKED: dict[Any, Callable[[Any], Any]] = {
    Tensor.item: lambda value: value,
    Tensor.tolist: lambda value: list(value) if isinstance(value, list) else value,
    Tensor.__int__: int,
    Tensor.__index__: operator.index,
    Tensor.__bool__: bool,
}
"""What turns tensors into numbers."""

_TAKE_NUMBERS = {torch.arange, torch.full}
"""Functions whose arguments are numbers, none of them a tensor to compute with."""
