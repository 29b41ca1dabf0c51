"""A file with a few real requests, for models whose inputs no range describes."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lamina.errors import ArgumentError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from torch import Tensor

FEWEST, MOST = 2, 16
"""How many requests a file may hold."""
MOST_BYTES = 64 << 20
"""Bytes of the whole file."""
_HEADER_BYTES = 1 << 20

_SAFE = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
}


def samples(path: str | PathLike[str], requests: Sequence[Mapping[str, object]]) -> str:
    """Writes requests with which Lamina prepares a model.

    Each has one row if the batch is free, and maps the names of `spec.inputs` to tensors, or to
    anything that `torch.as_tensor` accepts, such as numpy's arrays.

        sha256 = lamina.samples("samples.safetensors", [{"ids": first}, {"ids": second}])

    Args:
        path: the file to write, for `spec.samples.uri`.
        requests: 2 to 16 of them, with the same names; the first two differ.

    Returns:
        The file's SHA-256, for `spec.samples.sha256`.

    Raises:
        ArgumentError: if a model cannot be prepared with these.
        OSError: if the file cannot be written.
    """
    content = _safetensors(_checked(requests))
    Path(path).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def from_numpy(files: Sequence[str | PathLike[str]]) -> list[dict[str, object]]:
    """Requests for `samples`, one from each file of `numpy.savez`.

    Raises:
        ArgumentError: if one is no such file, or holds anything but arrays.
        OSError: if one cannot be read.
    """
    numpy: Any = importlib.import_module("numpy")
    requests: list[dict[str, object]] = []
    for file in files:
        try:
            with numpy.load(file, allow_pickle=False) as arrays:
                requests.append({name: torch.from_numpy(arrays[name]) for name in arrays.files})
        except OSError:
            raise
        except Exception as error:  # from any reader of the archive's parts
            raise ArgumentError(f"{file} is no .npz of numpy.savez: {error}") from error
    return requests


def _checked(requests: Sequence[Mapping[str, object]]) -> dict[str, Tensor]:
    if not FEWEST <= len(requests) <= MOST:
        raise ArgumentError(f"give {FEWEST} to {MOST} requests, not {len(requests)}")
    names = sorted(requests[0])
    if not names:
        raise ArgumentError("request 0 has no inputs: map each input's name to a tensor")
    tensors = {}
    for number, request in enumerate(requests):
        if sorted(request) != names:
            raise ArgumentError(
                f"request {number} has {', '.join(sorted(request)) or 'nothing'}, "
                f"request 0 has {', '.join(names)}: give each the same inputs"
            )
        for name, value in request.items():
            tensor = torch.as_tensor(value).detach().cpu().contiguous()
            if tensor.dtype not in _SAFE:
                raise ArgumentError(
                    f"request {number}: {name} is {tensor.dtype}, which Lamina does not serve"
                )
            tensors[f"{number}.{name}"] = tensor
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > MOST_BYTES - _HEADER_BYTES:
        raise ArgumentError(
            f"the requests take {size} bytes; give at most {MOST_BYTES - _HEADER_BYTES}: a few "
            "are enough"
        )
    for name in names:
        _check_alike(name, [tensors[f"{number}.{name}"] for number in range(len(requests))])
    if all(torch.equal(tensors[f"0.{name}"], tensors[f"1.{name}"]) for name in names):
        raise ArgumentError("requests 0 and 1 are equal, so they show nothing: give others")
    return tensors


def _check_alike(name: str, tensors: Sequence[Tensor]) -> None:
    first = tensors[0]
    for number, other in enumerate(tensors):
        if (other.dtype, other.shape) != (first.dtype, first.shape):
            raise ArgumentError(
                f"request {number}: {name} is {other.dtype} {list(other.shape)}, in request 0 "
                f"it is {first.dtype} {list(first.shape)}: give all the declared type and shape"
            )


def _safetensors(tensors: Mapping[str, Tensor]) -> bytes:
    """The format of safetensors: a header's length, the header as JSON, and the elements."""
    header, parts, end = {}, [], 0
    for name, tensor in tensors.items():
        part = ctypes.string_at(tensor.data_ptr(), tensor.nbytes)  # numpy has no bfloat16
        header[name] = {
            "dtype": _SAFE[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [end, end + len(part)],
        }
        end += len(part)
        parts.append(part)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(parts)
