"""Proves blocks equal to their model with PyTorch alone: nothing of the slicer is used.

Model and blocks are loaded with `torch.jit.load`, the blocks are chained by the names
in the manifest, every value copied on its way as a network would, and the outputs are
compared bit for bit at batch 1 and, where the manifest leaves the batch free, at 3; then
on further requests, of batches of 1 to 8 and of any sizes that are free.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from entry import DTYPES
from values import flat, is_same, spread

if TYPE_CHECKING:
    from pathlib import Path

# A request of another batch than the two that preparing tries, which are 1 and 2.
LARGE_BATCH = 3
# Further requests, and how long they may take: large models have fewer.
REQUESTS = 20
MOST_ROWS = 8
SECONDS = 60.0
# How blocks begin what they say of a request that they do not follow: `kOtherWay` in codec.cpp.
OTHER_WAY = "this request takes another way through the network"

Draw = Callable[[int, int], list[Tensor]]


class WrongError(Exception):
    """The chain of blocks is not the model."""


@dataclass
class Check:
    """What was seen."""

    # Values that crossed a boundary and had the declared type and shape, in all runs.
    boundary_values: int = 0
    # Difference of two requests' answers, relative to their size.
    telling: float = 0.0
    # "exact", "fixed" where the manifest has a fixed batch, and "fixed, but the model takes
    # more" where that is the slicer's doing.
    large_batch: str = "exact"
    # Boundaries whose values are the same for both requests.
    same_boundaries: list[str] = field(default_factory=list)
    # Blocks that assert what they assume of a request.
    assertions: int = 0
    # Further requests that were answered, and that a block refused by its assertion.
    answered: int = 0
    refused: int = 0

    def json(self) -> dict[str, object]:
        """Plain data."""
        return asdict(self)


def check(
    model: Path, blocks: Path, manifest: dict, draw: Draw, draw_sized: Draw | None = None
) -> Check:
    """Compares the blocks in folder `blocks` with `model`.

    Args:
        model: the file.
        blocks: with a file for each.
        manifest: of the blocks.
        draw: gives a request of typical sizes for a batch and a seed.
        draw_sized: gives one of any sizes.

    Raises:
        WrongError: if a value is not the one that it should be.
    """
    torch.set_num_threads(1)
    found = Check()
    with torch.no_grad(), torch.jit.optimized_execution(False):
        whole = torch.jit.load(str(model)).eval()
        chain = [torch.jit.load(str(blocks / f"{b['digest']}.pt")) for b in manifest["blocks"]]
        answers, values = [], []
        for seed in (1, 2):
            request = draw(1, seed)
            answers.append(_answer(whole, request))
            values.append(_run(chain, manifest, request, found))
            _compare(manifest, answers[-1], values[-1], f"batch 1, request {seed}")
        found.telling = spread(*answers)
        found.assertions = sum(OTHER_WAY in str(block.inlined_graph) for block in chain)
        found.same_boundaries = _same(manifest, values)
        if any(has_rows(value) for value in manifest["inputs"]):
            request = draw(LARGE_BATCH, 3)
            values = _run(chain, manifest, request, found)
            _compare(manifest, _answer(whole, request), values, f"batch {LARGE_BATCH}")
        else:
            is_ours = _takes(whole, draw, answers[0])
            found.large_batch = "fixed, but the model takes more" if is_ours else "fixed"
        _further(whole, chain, manifest, draw_sized or draw, found)
    return found


def _further(
    whole: torch.jit.ScriptModule,
    chain: Sequence[torch.jit.ScriptModule],
    manifest: dict,
    draw: Draw,
    found: Check,
) -> None:
    """Requests of other batches and sizes; one that the model does not take proves nothing."""
    most = MOST_ROWS if any(has_rows(value) for value in manifest["inputs"]) else 1
    begin = time.monotonic()
    for number in range(REQUESTS):
        if number >= most and time.monotonic() - begin > SECONDS:
            return
        rows = 1 + number % most
        request = draw(rows, number)
        try:
            answer = _answer(whole, request)
        except RuntimeError:
            continue
        try:
            values = _run(chain, manifest, request, found)
        except RuntimeError as error:
            if OTHER_WAY not in str(error):
                raise WrongError(f"further request {number}: {error}") from error
            found.refused += 1
            continue
        _compare(manifest, answer, values, f"batch {rows}, further request {number}")
        found.answered += 1


def _answer(model: torch.jit.ScriptModule, request: Sequence[Tensor]) -> list[Tensor]:
    return flat(model(*[tensor.clone() for tensor in request]))


def _run(
    chain: Sequence[torch.jit.ScriptModule], manifest: dict, request: list[Tensor], found: Check
) -> dict[str, Tensor]:
    """All values of a request by name."""
    values: dict[str, Tensor] = {}
    for spec, tensor in zip(manifest["inputs"], request, strict=True):
        values[spec["name"]] = tensor
    for number, (block, spec) in enumerate(zip(chain, manifest["blocks"], strict=True)):
        # Another host has a copy of its own: a block may write into what it takes.
        given = flat(block(*[values[name].clone() for name in spec["inputs"]]))
        if len(given) != len(spec["outputs"]):
            raise WrongError(
                f"block {number} gives {len(given)} tensors, not {len(spec['outputs'])}"
            )
        for output, tensor in zip(spec["outputs"], given, strict=True):
            _check_declared(number, output, tensor, request)
            values[output["name"]] = tensor.clone()
            found.boundary_values += 1
    return values


def has_rows(spec: dict) -> bool:
    """Whether the batch is in its first place."""
    return spec["shape"][:1] == [-1] and 0 not in _sized(spec)


def _sized(spec: dict) -> set[int]:
    """The places of its free sizes."""
    return {size["dimension"] for size in spec.get("sizes", [])}


def _check_declared(number: int, spec: dict, tensor: Tensor, request: list[Tensor]) -> None:
    batch = request[0].shape[0] if request and request[0].dim() > 0 else 1
    shape = list(spec["shape"])
    if len(shape) == tensor.dim():
        # The batch in another place, or a size that follows others or values, may be any.
        shape = [tensor.shape[i] if size == -1 else size for i, size in enumerate(shape)]
    if has_rows(spec):
        shape[0] = batch
    # FP16 and the like are not in the table's models.
    dtype = DTYPES.get(spec["datatype"], tensor.dtype)
    if list(tensor.shape) != shape or tensor.dtype != dtype:
        raise WrongError(
            f"block {number} gives `{spec['name']}` as {tensor.dtype} {list(tensor.shape)}, "
            f"declared is {spec['datatype']} {shape}"
        )


def _compare(manifest: dict, answer: list[Tensor], values: dict[str, Tensor], where: str) -> None:
    names = [output["name"] for output in manifest["outputs"]]
    if len(names) != len(answer):
        raise WrongError(f"{where}: {len(names)} outputs declared, the model gives {len(answer)}")
    for name, expected in zip(names, answer, strict=True):
        if not is_same(expected, values[name]):
            difference = spread([expected], [values[name]])
            raise WrongError(f"{where}: output `{name}` differs by {difference:.1e} of its size")


def _same(manifest: dict, values: list[dict[str, Tensor]]) -> list[str]:
    between = [o["name"] for block in manifest["blocks"][:-1] for o in block["outputs"]]
    return [name for name in between if is_same(values[0][name], values[1][name])]


def _takes(model: torch.jit.ScriptModule, draw: Draw, at_one: list[Tensor]) -> bool:
    """Whether the model itself takes a larger batch and gives one answer a row."""
    try:
        answer = _answer(model, draw(LARGE_BATCH, 3))
    except RuntimeError:
        return False
    return len(answer) == len(at_one) and all(
        list(a.shape) == [LARGE_BATCH, *b.shape[1:]] and b.shape[:1] == (1,)
        for a, b in zip(answer, at_one, strict=True)
    )
