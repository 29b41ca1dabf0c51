"""Constants of a graph in TorchScript."""

from __future__ import annotations

import json
import math

import torch

_MEMORY_FORMATS = {
    torch.contiguous_format: "torch.contiguous_format",
    torch.channels_last: "torch.channels_last",
    torch.channels_last_3d: "torch.channels_last_3d",
    torch.preserve_format: "torch.preserve_format",
}


def literal(value: object, kind: str = "") -> str | None:
    """The text of `value`, or None if TorchScript has none.

    Args:
        value: a number, a text, None, or a value of torch's types.
        kind: the type that the operator expects, as printed in schemas: a float argument
            does not accept an int.
    """
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int):
        return _float(float(value)) if _is_float(kind) else str(value)
    if isinstance(value, float):
        return _float(value)
    if isinstance(value, complex):
        return f"complex({_float(value.real)}, {_float(value.imag)})"
    if isinstance(value, str):
        return json.dumps(value)
    return _of_torch(value)


def _of_torch(value: object) -> str | None:
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, torch.layout):
        return str(value)
    if isinstance(value, torch.memory_format):
        return _MEMORY_FORMATS.get(value)
    if isinstance(value, torch.device):
        # Hosts have no other device; the weights go there as well.
        return 'torch.device("cpu")'
    return None


def _is_float(kind: str) -> bool:
    return kind in ("float", "Optional[float]", "List[float]", "Optional[List[float]]")


def _float(value: float) -> str:
    return repr(value) if math.isfinite(value) else f'float("{value}")'
