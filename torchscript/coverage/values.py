"""Answers of models as flat lists of tensors, and how they are compared."""

from __future__ import annotations

import torch
from torch import Tensor


def flat(value: object) -> list[Tensor]:
    """The tensors in `value`, in order: tuples and lists by place, dictionaries as they come."""
    if isinstance(value, Tensor):
        if value.is_complex():  # travels as pairs
            return [torch.view_as_real(value.resolve_conj())]
        return [value.resolve_neg()]
    if isinstance(value, dict):
        return [tensor for part in value.values() for tensor in flat(part)]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in flat(part)]
    return []


def is_same(a: Tensor, b: Tensor) -> bool:
    """Whether type, shape and every bit agree; a NaN is equal to the same NaN."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def spread(first: list[Tensor], second: list[Tensor]) -> float:
    """Largest difference of two answers, relative to the largest magnitude in them.

    Zero where an answer holds a value that is not finite.
    """
    difference, size = 0.0, 0.0
    for a, b in zip(first, second, strict=True):
        if a.numel() == 0 or a.shape != b.shape:
            continue
        a, b = a.double(), b.double()  # noqa: PLW2901 - the same values, wider
        if not (a.isfinite().all() and b.isfinite().all()):
            return 0.0
        difference = max(difference, float((a - b).abs().max()))
        size = max(size, float(a.abs().max()), float(b.abs().max()))
    return difference / size if size > 0 else 0.0
