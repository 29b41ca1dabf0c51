"""`lamina.json`, the extra file in an exported archive that says which outputs are exits.

Format 1 is one JSON object. Every field is there, names are in camelCase, and a
reader refuses unknown fields and newer versions.

| field | type | meaning |
|---|---|---|
| `version` | integer | format of this file: 1 |
| `producer` | string | the writer: `lamina 0.1.0, torch 2.13.0` |
| `inputs` | array of one | the network's input |
| `inputs[].name` | string | name that clients use |
| `inputs[].datatype` | string | element type as the Open Inference Protocol names it: `FP32`, `UINT8`, … |
| `inputs[].shape` | array of integers | -1 as the first dimension if the batch is free |
| `stages` | array | the trunk in order; stage `i` is the submodule `stages.i` of the file |
| `stages[].name` | string | label, unique among stages |
| `stages[].distributable` | boolean | false: no cut in front of this stage and none inside |
| `criterion` | string | `confidence`: leave if the largest softmax probability is >= the threshold; `entropy`: leave if the softmax's entropy divided by ln(classes) is <= the threshold |
| `exits` | array | in the order in which a request meets them, which is that of the file's output tuple; the last one is the network's end |
| `exits[].name` | string | label, unique among exits |
| `exits[].output` | integer | its position in the output tuple |
| `exits[].stage` | integer | the stage after which its branch leaves the trunk |
| `exits[].within` | string or null | the exit at the end of its side branch; null on the trunk |
| `exits[].classes` | integer | number of classes, 2 or more |
| `exits[].temperature` | number | above 0; divides the logits before the softmax |
| `exits[].threshold` | number or null | 0..=1; null: no request leaves here (at the last exit: all do) |
| `exits[].table` | array | measured on a validation set, from strict to permissive; may be empty |
| `exits[].table[].threshold` | number | 0..=1 |
| `exits[].table[].exitRate` | number | share of all rows that are confident enough here, 0..=1, as if it were the only side exit |
| `exits[].table[].accuracy` | number | share of those that it gets right, 0..=1 |
| `expected` | object or null | results on that set with all thresholds in force |
| `expected.accuracy` | number | share of all rows that are right, 0..=1 |
| `expected.exits` | array | one for each exit |
| `expected.exits[].exitRate` | number | share of all rows that leave here; together 1 |
| `expected.exits[].accuracy` | number or null | share of those that are right; null if no row leaves |
| `expected.exits[].accuracyAlone` | number | share of all rows that this exit would get right |
"""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
import zlib
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from lamina.criterion import Criterion
from lamina.errors import MetadataError
from lamina.evaluation import Evaluation, ExitShare, ExitTableRow
from lamina.fields import Fields, as_label, parse_json
from lamina.model import ExitPlace
from lamina.policy import Policy

FORMAT = 1
"""Version of the format; a reader refuses a newer one."""

FILE = "lamina.json"
"""Name of the extra file in the archive."""

MAX_BYTES = 1 << 20
"""A longer file is refused unread."""

DATATYPES = (
    "BOOL",
    "UINT8",
    "INT8",
    "INT16",
    "INT32",
    "INT64",
    "FP16",
    "BF16",
    "FP32",
    "FP64",
)
"""Names of element types, as in the Open Inference Protocol."""


@dataclass(frozen=True)
class InputField:
    """The network's input.

    Attributes:
        name: used by clients.
        datatype: one of `DATATYPES`.
        shape: starts with -1 if any batch size is accepted.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StageField:
    """One stage of the trunk.

    Attributes:
        name: unique among stages.
        distributable: False: no cut before or inside it.
    """

    name: str
    distributable: bool


@dataclass(frozen=True)
class ExitField:
    """One exit.

    Attributes:
        place: name, stage and branch.
        classes: number of classes.
        temperature: divides the logits before the softmax.
        threshold: None if no row leaves; at the last exit all do.
        table: on the validation set, strict to permissive.
    """

    place: ExitPlace
    classes: int
    temperature: float
    threshold: float | None
    table: tuple[ExitTableRow, ...]


@dataclass(frozen=True)
class Metadata:
    """Content of `lamina.json`; the module's documentation has the format.

    Attributes:
        producer: the versions that wrote the file.
        input: the network's one input.
        stages: the trunk in order.
        criterion: for all exits.
        exits: in the order of the output tuple.
        expected: on the validation set; None without one.
    """

    producer: str
    input: InputField
    stages: tuple[StageField, ...]
    criterion: Criterion
    exits: tuple[ExitField, ...]
    expected: Evaluation | None

    @property
    def policy(self) -> Policy:
        """When a request leaves at which exit."""
        return Policy(
            self.criterion,
            tuple(e.temperature for e in self.exits),
            tuple(e.threshold for e in self.exits[:-1]),
        )

    def to_json(self) -> str:
        """The text of `lamina.json`; equal metadata give equal text."""
        document = {
            "version": FORMAT,
            "producer": self.producer,
            "inputs": [asdict(self.input)],
            "stages": [asdict(s) for s in self.stages],
            "criterion": self.criterion.value,
            "exits": [_exit_to_json(i, e) for i, e in enumerate(self.exits)],
            "expected": None if self.expected is None else _expected_to_json(self.expected),
        }
        return json.dumps(document, indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Metadata:
        """Reads and checks the text of `lamina.json`.

        Raises:
            MetadataError: with the first field that is wrong, and what is allowed.
        """
        document = parse_json(text)
        version = Fields(document, "").integer("version", low=1)
        if version > FORMAT:
            raise MetadataError(
                f"{FILE} has format {version}, this version of lamina reads up to {FORMAT}: "
                "update the package"
            )
        fields = Fields(document, "")
        fields.only("version", "producer", "inputs", "stages", "criterion", "exits", "expected")
        metadata = cls(
            producer=fields.text("producer"),
            input=_input_from_json(fields),
            stages=tuple(_stage_from_json(s) for s in fields.objects("stages", at_least=1)),
            criterion=Criterion(fields.choice("criterion", [c.value for c in Criterion])),
            exits=tuple(
                _exit_from_json(i, e) for i, e in enumerate(fields.objects("exits", at_least=2))
            ),
            expected=_expected_from_json(fields),
        )
        _check_whole(metadata)
        return metadata


def read_metadata(path: str | os.PathLike[str]) -> Metadata:
    """Reads `lamina.json` from an exported file, without loading the network.

    Loading TorchScript runs code, reading a zip archive does not.

    Raises:
        MetadataError: if it is missing or malformed.
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        try:
            return Metadata.from_json(_extra_file(file, os.fspath(path)))
        except MetadataError:
            raise
        except _ZIP_ERRORS as error:
            raise MetadataError(f"{os.fspath(path)} is no TorchScript archive: {error}") from error


_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,  # a compression that Python does not support
    OSError,  # an offset outside the file
    RuntimeError,  # encrypted
    ValueError,  # a name in an unknown encoding
)
"""What `zipfile` raises on damaged files."""


def _extra_file(file: BinaryIO, path: str) -> bytes:
    with zipfile.ZipFile(file) as archive:
        return _only_extra_file(archive, path)


def _only_extra_file(archive: zipfile.ZipFile, path: str) -> bytes:
    pattern = re.compile(rf"[^/]+/extra/{re.escape(FILE)}")
    found = [entry for entry in archive.infolist() if pattern.fullmatch(entry.filename)]
    if not found:
        raise MetadataError(
            f"{path} holds no {FILE}: it was not written by lamina.export, its outputs are no exits"
        )
    if len(found) > 1:
        raise MetadataError(f"{path} holds {len(found)} files {FILE}")
    if found[0].file_size > MAX_BYTES:
        raise MetadataError(
            f"{path}: {FILE} has {found[0].file_size} bytes, at most {MAX_BYTES} are read"
        )
    return archive.read(found[0])


def _exit_to_json(index: int, field: ExitField) -> dict[str, Any]:
    return {
        "name": field.place.name,
        "output": index,
        "stage": field.place.stage,
        "within": field.place.within,
        "classes": field.classes,
        "temperature": field.temperature,
        "threshold": field.threshold,
        "table": [
            {"threshold": r.threshold, "exitRate": r.exit_rate, "accuracy": r.accuracy}
            for r in field.table
        ],
    }


def _expected_to_json(expected: Evaluation) -> dict[str, Any]:
    return {
        "accuracy": expected.accuracy,
        "exits": [
            {
                "exitRate": e.exit_rate,
                "accuracy": e.accuracy,
                "accuracyAlone": e.accuracy_alone,
            }
            for e in expected.exits
        ],
    }


def _input_from_json(fields: Fields) -> InputField:
    inputs = fields.objects("inputs", at_least=1)
    if len(inputs) != 1:
        raise MetadataError(f"inputs: a multi-exit network has one, not {len(inputs)}")
    field = inputs[0]
    field.only("name", "datatype", "shape")
    shape = field.integers("shape")
    if not shape or shape[0] < -1 or 0 in shape or any(d < 1 for d in shape[1:]):
        raise MetadataError(
            f"{field.path}shape: {list(shape)} needs sizes of 1 or more, -1 in the first place only"
        )
    return InputField(field.text("name"), field.choice("datatype", DATATYPES), shape)


def _stage_from_json(field: Fields) -> StageField:
    field.only("name", "distributable")
    return StageField(as_label(field, "name"), field.boolean("distributable"))


def _exit_from_json(index: int, field: Fields) -> ExitField:
    field.only("name", "output", "stage", "within", "classes", "temperature", "threshold", "table")
    if field.integer("output", low=0) != index:
        raise MetadataError(
            f"{field.path}output: must be {index}, exits are in the order of the outputs"
        )
    within = None if field.is_null("within") else as_label(field, "within")
    return ExitField(
        place=ExitPlace(as_label(field, "name"), field.integer("stage", low=0), within),
        classes=field.integer("classes", low=2),
        temperature=field.positive("temperature"),
        threshold=None if field.is_null("threshold") else field.share("threshold"),
        table=tuple(_row_from_json(r) for r in field.objects("table")),
    )


def _row_from_json(field: Fields) -> ExitTableRow:
    field.only("threshold", "exitRate", "accuracy")
    return ExitTableRow(field.share("threshold"), field.share("exitRate"), field.share("accuracy"))


def _expected_from_json(fields: Fields) -> Evaluation | None:
    if fields.is_null("expected"):
        return None
    field = fields.nested("expected")
    field.only("accuracy", "exits")
    return Evaluation(
        field.share("accuracy"), tuple(_share_from_json(e) for e in field.objects("exits"))
    )


def _share_from_json(field: Fields) -> ExitShare:
    field.only("exitRate", "accuracy", "accuracyAlone")
    return ExitShare(
        exit_rate=field.share("exitRate"),
        accuracy=None if field.is_null("accuracy") else field.share("accuracy"),
        accuracy_alone=field.share("accuracyAlone"),
    )


def _check_whole(metadata: Metadata) -> None:
    """Checks across fields."""
    _check_unique("stages", [s.name for s in metadata.stages])
    names = [e.place.name for e in metadata.exits]
    _check_unique("exits", names)
    last = len(metadata.stages) - 1
    previous = 0
    for index, field in enumerate(metadata.exits):
        place, path = field.place, f"exits[{index}]."
        if not previous <= place.stage <= last:
            raise MetadataError(
                f"{path}stage: {place.stage} must be within {previous}..={last}, "
                "exits are in the order of the stages"
            )
        previous = place.stage
        _check_within(metadata, index)
        _check_table(field, path, metadata.criterion)
    end = metadata.exits[-1]
    if end.place.stage != last or end.place.within is not None or end.threshold is not None:
        raise MetadataError(
            f"exits[{len(names) - 1}]: the last exit is the network's end, with the last stage "
            f"({last}), `within` null and `threshold` null"
        )
    _check_expected(metadata)


def _check_unique(field: str, names: list[str]) -> None:
    doubles = sorted({n for n in names if names.count(n) > 1})
    if doubles:
        raise MetadataError(f"{field}: names must differ, these occur twice: {', '.join(doubles)}")


def _check_within(metadata: Metadata, index: int) -> None:
    place = metadata.exits[index].place
    if place.within is None:
        return
    ends = [e.place for e in metadata.exits[index + 1 :] if e.place.name == place.within]
    if not ends or ends[0].stage != place.stage:
        raise MetadataError(
            f"exits[{index}].within: {place.within!r} must be a later exit of the same stage"
        )


def _check_table(field: ExitField, path: str, criterion: Criterion) -> None:
    strict_first = criterion is Criterion.ENTROPY
    thresholds = [r.threshold for r in field.table]
    rates = [r.exit_rate for r in field.table]
    ordered = sorted(set(thresholds), reverse=not strict_first)
    if thresholds != ordered or rates != sorted(rates):
        raise MetadataError(f"{path}table: rows must go from strict to permissive thresholds")


def _check_expected(metadata: Metadata) -> None:
    if metadata.expected is None:
        return
    shares = [e.exit_rate for e in metadata.expected.exits]
    if len(shares) != len(metadata.exits) or abs(sum(shares) - 1.0) > 1e-6:
        raise MetadataError(
            f"expected.exits: needs one for each of {len(metadata.exits)} exits, with exit rates "
            "that add up to 1"
        )
