"""One TorchScript file that holds a network and its exits."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lamina.criterion import Criterion
from lamina.datatypes import NAMES
from lamina.errors import ArgumentError, ExportError
from lamina.evaluation import ExitOutputs, evaluate, exit_table
from lamina.files import replace
from lamina.metadata import FILE, ExitField, InputField, Metadata, StageField
from lamina.model import MultiExit
from lamina.modes import evaluating, quiet
from lamina.policy import Policy
from lamina.version import __version__

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from lamina.evaluation import ExitTableRow


def export(
    model: MultiExit,
    path: str | os.PathLike[str],
    example: Tensor,
    *,
    policy: Policy | None = None,
    validation: ExitOutputs | None = None,
    input_name: str = "input",
) -> Metadata:
    """Writes `model` as a TorchScript file with `lamina.json` inside.

    Anything that runs TorchScript runs the file: `forward` returns the logits of
    all exits as a tuple, the network's end last. The file is traced in evaluation
    mode, so it lacks control flow that depends on values; the written file is
    read back and compared with `model` before it replaces the one at `path`.

    Args:
        model: not changed, training mode included.
        path: of the file, usually `*.pt`.
        example: an input, batch first, with realistic values.
        policy: learned thresholds; without one no row leaves early.
        validation: the set on which the policy was learned, for the tables in the file.
        input_name: used by clients.

    Returns:
        The metadata that `read_metadata` will read.

    Raises:
        ArgumentError: if the arguments do not fit together.
        ExportError: if the file would differ from the model.
        OSError: if it cannot be written.
    """
    if example.dim() < 1 or 0 in example.shape or example.dtype not in NAMES:
        raise ArgumentError(
            f"the example must have the batch first and no empty dimension, not {example.dtype} "
            f"of shape {tuple(example.shape)}"
        )
    if not input_name:
        raise ArgumentError("the input needs a name")
    with evaluating(model), quiet():
        _check_in_place(model, example)
        outputs = _run(model, example)
        traced = _trace(model, example)
        dynamic = _is_batch_dynamic(model, traced, example)
        batch = -1 if dynamic else example.shape[0]
        field = InputField(input_name, NAMES[example.dtype], (batch, *example.shape[1:]))
        metadata = _metadata(model, field, outputs, policy, validation)
        archive = _archive(traced, metadata)
        _check_archive(archive, example, outputs)
    replace(Path(path), archive)
    return metadata


def _check_in_place(model: MultiExit, x: Tensor) -> None:
    """Refuses an exit, or a stage behind one, that changes the features they share.

    They may run on different hosts, each on a copy.
    """
    # Tensors made in inference mode, as an example may be, do not count versions.
    x = x.clone()
    shared = False
    for index, stage in enumerate(model.stages):
        before = x._version
        features = stage(x)
        if not isinstance(features, Tensor):
            raise ExportError(
                f"{model.stage_names[index]} gives a {type(features).__name__}: a stage must give "
                "one tensor"
            )
        if shared and x._version != before:
            raise ExportError(
                f"{model.stage_names[index]} changes its input in place, which the exit in front "
                "of it reads: use inplace=False in its first operation"
            )
        x = features
        shared = str(index) in model.heads
        before = x._version
        model.exits_behind(index, x)
        if x._version != before:
            raise ExportError(
                f"the exit behind {model.stage_names[index]} changes the features that it reads in "
                "place: use inplace=False in its first operation"
            )
        if shared and isinstance(model.heads[str(index)], MultiExit):
            _check_in_place(model.heads[str(index)], x)  # type: ignore[arg-type]


def _run(model: torch.nn.Module, example: Tensor) -> tuple[Tensor, ...]:
    # A copy, because the first stage may work in place.
    outputs: tuple[Tensor, ...] = model(example.clone())
    for index, logits in enumerate(outputs):
        if logits.dim() != 2 or len(logits) != len(example) or logits.shape[1] < 2:
            raise ExportError(
                f"exit {index} gives shape {tuple(logits.shape)}, not batch ({len(example)}) x "
                "classes"
            )
        if not bool(logits.isfinite().all()):
            raise ExportError(f"exit {index} gives numbers that are not finite for the example")
    return outputs


def _trace(model: MultiExit, example: Tensor) -> torch.jit.ScriptModule:
    try:
        traced = torch.jit.trace(  # type: ignore[no-untyped-call]
            model, (example.clone(),), check_trace=False
        )
    except RuntimeError as error:
        raise ExportError(f"the network cannot be traced: {error}") from error
    assert isinstance(traced, torch.jit.ScriptModule)
    return traced


def _is_batch_dynamic(model: MultiExit, traced: torch.nn.Module, example: Tensor) -> bool:
    """Whether the traced network equals the original at another batch size."""
    other = torch.cat([example, example[:1]])
    try:
        expected, actual = _run(model, other), _run(traced, other)
    except (RuntimeError, ExportError):
        return False
    return _first_difference(expected, actual) is None


def _first_difference(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> int | None:
    if len(expected) != len(actual):
        return min(len(expected), len(actual))
    for index, (left, right) in enumerate(zip(expected, actual, strict=True)):
        if not torch.equal(left, right):
            return index
    return None


def _metadata(
    model: MultiExit,
    field: InputField,
    outputs: tuple[Tensor, ...],
    policy: Policy | None,
    validation: ExitOutputs | None,
) -> Metadata:
    exits = len(outputs)
    if policy is None:
        policy = Policy(Criterion.CONFIDENCE, (1.0,) * exits, (None,) * (exits - 1))
    classes = [o.shape[1] for o in outputs]
    if len(policy.temperatures) != exits:
        raise ArgumentError(f"the policy is for {len(policy.temperatures)} exits, not {exits}")
    if validation is not None and [o.shape[1] for o in validation.logits] != classes:
        raise ArgumentError("the validation outputs are of another network: collect them again")
    return Metadata(
        producer=f"lamina {__version__}, torch {torch.__version__}",
        input=field,
        stages=tuple(map(StageField, model.stage_names, model.distributable)),
        criterion=policy.criterion,
        exits=tuple(_exit_fields(model, classes, policy, validation)),
        expected=None if validation is None else evaluate(validation, policy),
    )


def _exit_fields(
    model: MultiExit, classes: Sequence[int], policy: Policy, validation: ExitOutputs | None
) -> Iterator[ExitField]:
    for index, threshold in enumerate((*policy.thresholds, None)):
        temperature = policy.temperatures[index]
        table: tuple[ExitTableRow, ...] = ()
        if validation is not None and index < len(policy.thresholds):
            table = exit_table(validation, index, policy.criterion, temperature)
        yield ExitField(model.places[index], classes[index], temperature, threshold, table)


def _archive(traced: torch.jit.ScriptModule, metadata: Metadata) -> bytes:
    """The file's bytes.

    Written to memory, because torch puts the name of the file into the archive.
    """
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer, _extra_files={FILE: metadata.to_json()})
    return buffer.getvalue()


def _check_archive(archive: bytes, example: Tensor, expected: tuple[Tensor, ...]) -> None:
    loaded = torch.jit.load(  # type: ignore[no-untyped-call]
        io.BytesIO(archive), map_location=example.device
    )
    differs = _first_difference(expected, _run(loaded, example))
    if differs is not None:
        raise ExportError(
            f"exit {differs} of the file differs from the network's: it depends on what tracing "
            "does not see, such as random numbers or state"
        )
