import copy
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lamina
from lamina.metadata import MAX_BYTES
from tests import networks


def exported(path: Path) -> lamina.Metadata:
    """The nested network with learned thresholds."""
    outputs = networks.random_outputs(60, 5, classes=5)
    policy = lamina.thresholds_for_exit_rates(outputs, 0.3, criterion=lamina.Criterion.ENTROPY)
    return lamina.export(
        networks.nested(), path, networks.images(2), policy=policy, validation=outputs
    )


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(
        exported(tmp_path_factory.mktemp("export") / "m.pt").to_json()
    )
    return parsed


def test_what_was_exported_is_read_back(tmp_path: Path) -> None:
    written = exported(tmp_path / "m.pt")
    read = lamina.read_metadata(tmp_path / "m.pt")
    assert read == written
    assert read.to_json() == written.to_json()
    assert [e.place for e in read.exits] == list(networks.nested().places)
    outputs = networks.random_outputs(60, 5, classes=5)
    assert lamina.evaluate(outputs, read.policy) == read.expected
    assert read.expected is not None
    assert read.expected.exits[0].exit_rate == pytest.approx(0.3)
    assert all(e.table for e in read.exits[:-1])


def test_torch_reads_the_same_text(tmp_path: Path) -> None:
    written = exported(tmp_path / "m.pt")
    files = {"lamina.json": ""}
    torch.jit.load(str(tmp_path / "m.pt"), _extra_files=files)  # type: ignore[no-untyped-call]
    assert lamina.Metadata.from_json(files["lamina.json"]) == written


def test_without_a_policy_nobody_leaves_early(tmp_path: Path) -> None:
    lamina.export(networks.flat(), tmp_path / "m.pt", networks.images(2))
    read = lamina.read_metadata(tmp_path / "m.pt")
    assert [(e.threshold, e.temperature, e.table) for e in read.exits] == [(None, 1.0, ())] * 2
    assert read.expected is None


def test_the_documented_fields_are_those_of_the_file(document: dict[str, Any]) -> None:
    def names(value: object, path: str) -> set[str]:
        if isinstance(value, dict):
            return {n for k, v in value.items() for n in {f"{path}{k}"} | names(v, f"{path}{k}.")}
        if isinstance(value, list) and value and isinstance(value[0], dict):
            return {n for v in value for n in names(v, f"{path[:-1]}[].")}
        return set()

    text = lamina.metadata.__doc__ or ""
    documented = {line.split("`")[1] for line in text.splitlines() if line.startswith("| `")}
    assert documented == names(document, "")


def at(*path: str | int, value: object) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value

    return change


def without(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        place: Any = document
        for step in path[:-1]:
            place = place[step]
        del place[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (at("version", value=2), "format 2, this version of lamina reads up to 1"),
        (at("version", value="1"), "version: '1' is not a whole number"),
        (at("version", value=True), "version: True is not a whole number"),
        (without("version"), "version: missing"),
        (at("surprise", value=1), "surprise: unknown field"),
        (at("producer", value=""), "producer: '' is not a string"),
        (at("inputs", value=[]), "inputs: has 0, at least 1"),
        (at("inputs", 0, "datatype", value="FP8"), r"inputs\[0\].datatype: 'FP8' is not one of"),
        (at("inputs", 0, "shape", value=[3, -1]), r"inputs\[0\].shape: \[3, -1\] needs sizes"),
        (at("inputs", 0, "shape", value=[]), r"inputs\[0\].shape"),
        (at("inputs", 0, "shape", value=[1.5]), "list of whole numbers"),
        (at("stages", value={}), "stages: {} is not a list of objects"),
        (at("stages", 0, "name", value="No Label"), r"stages\[0\].name: 'No Label' is not a label"),
        (at("stages", 1, "name", value="stage0"), "stages: names must differ.*: stage0"),
        (at("stages", 0, "distributable", value=1), r"stages\[0\].distributable: 1 is not true"),
        (at("criterion", value="margin"), "criterion: 'margin' is not one of confidence, entropy"),
        (at("exits", value=[]), "exits: has 0, at least 2"),
        (at("exits", 0, "output", value=1), r"exits\[0\].output: must be 0"),
        (at("exits", 0, "stage", value=9), r"exits\[0\].stage: 9 must be within 0..=3"),
        (at("exits", 1, "stage", value=2), r"exits\[1\].within: 'side-tip' must be a later exit"),
        (at("exits", 1, "within", value="exit0"), r"exits\[1\].within: 'exit0' must be a later"),
        (at("exits", 0, "name", value="side"), "exits: names must differ.*: side"),
        (at("exits", 0, "classes", value=1), r"exits\[0\].classes: 1 is not a whole number of 2"),
        (
            at("exits", 0, "temperature", value=0),
            r"exits\[0\].temperature: 0.0 is not a number abo",
        ),
        (at("exits", 0, "temperature", value=10**400), "double precision"),
        (at("exits", 0, "threshold", value=1.7), r"exits\[0\].threshold: 1.7 is not .* 0..=1"),
        (at("exits", 0, "threshold", value="0.5"), r"exits\[0\].threshold: '0.5' is not a number"),
        (at("exits", 0, "threshold", value=False), r"exits\[0\].threshold: False is not a number"),
        (without("exits", 0, "within"), r"exits\[0\].within: missing"),
        (at("exits", 4, "threshold", value=0.5), r"exits\[4\]: the last exit is the network's end"),
        (at("exits", 0, "table", 0, "threshold", value=0.99), r"exits\[0\].table: rows must go"),
        (at("exits", 0, "table", 0, "accuracy", value=-1), r"table\[0\].accuracy: -1.0 is not"),
        (at("exits", 0, "table", 0, "x", value=1), r"exits\[0\].table\[0\].x: unknown field"),
        (at("expected", value=3), "expected: 3 is not an object"),
        (at("expected", "exits", 0, "exitRate", value=0.9), "expected.exits: needs one for each"),
        (without("expected", "exits", 0), "expected.exits: needs one for each of 5 exits"),
    ],
)
def test_a_wrong_field_is_named(
    document: dict[str, Any], change: Callable[[dict[str, Any]], None], message: str
) -> None:
    changed = copy.deepcopy(document)
    change(changed)
    with pytest.raises(lamina.MetadataError, match=message):
        lamina.Metadata.from_json(json.dumps(changed))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("[]", "must be a JSON object"),
        ('{"version": NaN}', "NaN is no JSON number"),
        ('{"version": 1, "version": 2}', "occurs twice"),
        (b"\xff\xfe\x00", "no JSON"),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_what_is_no_json_object_is_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(lamina.MetadataError, match=message):
        lamina.Metadata.from_json(text)


def write_zip(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_archives_without_one_small_lamina_json_are_refused(tmp_path: Path) -> None:
    cases = {
        "holds no lamina.json": {"archive/data.pkl": "", "lamina.json": "{}"},
        "holds 2 files lamina.json": {"a/extra/lamina.json": "{}", "b/extra/lamina.json": "{}"},
        "bytes, at most": {"a/extra/lamina.json": " " * (MAX_BYTES + 1)},
        "version: missing": {"a/extra/lamina.json": "{}"},
    }
    for message, files in cases.items():
        with pytest.raises(lamina.MetadataError, match=message):
            lamina.read_metadata(write_zip(tmp_path / "m.pt", files))
    (tmp_path / "m.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(lamina.MetadataError, match="no TorchScript archive"):
        lamina.read_metadata(tmp_path / "m.pt")
    with pytest.raises(FileNotFoundError):
        lamina.read_metadata(tmp_path / "missing.pt")


def test_damaged_bytes_are_refused_or_read_but_never_anything_else(tmp_path: Path) -> None:
    exported(tmp_path / "m.pt")
    whole = (tmp_path / "m.pt").read_bytes()
    start = whole.index(b'{\n "version"')
    draw = random.Random(0)
    places = [*range(start - 60, start + 400, 3), *range(len(whole) - 80, len(whole))]
    # The directory is at the end.
    places += draw.choices(range(len(whole) - 6000, len(whole)), k=600)
    for place in places:
        damaged = bytearray(whole)
        damaged[place] ^= draw.randrange(1, 256)
        (tmp_path / "d.pt").write_bytes(damaged)
        try:
            lamina.read_metadata(tmp_path / "d.pt")
        except lamina.MetadataError:
            continue


def test_a_file_of_format_1_is_read_for_good() -> None:
    text = (Path(__file__).parent / "data" / "lamina-1.json").read_text(encoding="utf-8")
    metadata = lamina.Metadata.from_json(text)
    assert [e.place.name for e in metadata.exits] == list(networks.nested().exit_names)
    assert metadata.policy.thresholds[0] == 0.5887858484603761
    assert metadata.to_json() == text
