import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import lamina
from lamina.__main__ import DONE, FAILED, main
from tests import programs
from tests.programs import FREE, exported


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "words.pt2"
    torch.export.save(programs.words(), path)
    return path


def test_a_file_is_exported_beside_itself_and_the_report_is_for_people(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(saved)]) == DONE
    out = saved.with_suffix(".pt")
    loaded = torch.jit.load(str(out))  # type: ignore[no-untyped-call]
    assert loaded(torch.zeros(3, 5, dtype=torch.int64), torch.ones(3, 5))["pooled"].shape == (3, 8)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{out}: 0.0 MB, ")
    assert "  takes ids INT64 -1x-1" in lines
    assert "  gives FP32 -1x-1x50" in lines
    assert "batch 3 3x7 3x7 equal, bit for bit" in [" ".join(line.split()) for line in lines]
    assert lines[-1].startswith(f"next: lamina-node-agent prepare {out} --input ids:INT64:-1x7:")


def test_programs_get_the_report_as_one_object(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "other.pt"
    inputs = ["--input", "ids:INT64:-1x7:0:49", "--input", "mask:FP32:-1x7:1:1"]
    assert main(["export", str(saved), "-o", str(out), "--json", *inputs]) == DONE
    report = json.loads(capsys.readouterr().out)
    assert report["output"] == str(out)
    assert report["fileBytes"] == out.stat().st_size
    assert report["inputs"][0] == {
        "name": "ids",
        "datatype": "INT64",
        "shape": [-1, -1],
        "exampleShape": [2, 7],
        "free": [
            {"place": 0, "low": 2, "high": None, "name": None},
            {"place": 1, "low": 2, "high": None, "name": "n0"},
        ],
        "low": 0,
        "high": 49,
    }
    assert {c["why"] for c in report["checks"]} > {"the example", "batch 1", "batch 3"}
    assert all(c["equal"] for c in report["checks"])
    assert report["prepareCommand"].endswith("--input mask:FP32:-1x7:1:1 --out blocks")


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["export"],
        ["export", "FILE", "--input", "8x3"],
        ["export", "FILE", "--input", "x:FP99:1x3"],
        ["export", "FILE", "--input", "x:FP32:1x-3"],
        ["export", "FILE", "--input", "x:FP32:1x3:2:1"],
        ["export", "FILE", "--input", "x:FP32:1x3:a:1"],
        ["export", "FILE", "--input", "x:FP32:1x3:0:inf"],
    ],
)
def test_a_wrong_command_line_is_the_callers(wrong: list[str], saved: Path) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(saved) if word == "FILE" else word for word in wrong])
    assert end.value.code == 2


def failing(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that fails."""
    assert main(arguments) == FAILED
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    return said.err


def test_declared_inputs_that_do_not_fit_are_named(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = failing(["export", str(saved), "--input", "ids:INT64:-1x7"], capsys)
    assert "takes 2 inputs (ids, mask), 1 are declared" in said
    assert not saved.with_suffix(".pt").exists()


def test_the_program_is_not_overwritten(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = saved.read_bytes()
    assert "name another file with -o" in failing(["export", str(saved), "-o", str(saved)], capsys)
    assert saved.read_bytes() == before


def test_a_file_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "none.pt2" in failing(["export", str(tmp_path / "none.pt2")], capsys)


def write_torchscript(path: Path) -> None:
    program = exported(nn.Linear(2, 2), torch.rand(2, 2), free=({0: FREE},))
    lamina.export_program(program, path)


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/readme", "nothing")


def write_half(path: Path) -> None:
    torch.export.save(exported(nn.Linear(2, 2), torch.rand(2, 2)), path)
    path.write_bytes(path.read_bytes()[:-500])


FILES = {
    "served.pt": (write_torchscript, "is TorchScript already"),
    "weights.pth": (lambda p: torch.save({"w": torch.rand(2)}, p), "is a pickle of torch.save"),
    "old.pth": (
        lambda p: torch.save({"w": torch.rand(2)}, p, _use_new_zipfile_serialization=False),
        "is a pickle of torch.save",
    ),
    "weights.safetensors": (
        lambda p: p.write_bytes((2).to_bytes(8, "little") + b"{}"),
        "holds weights without a network",
    ),
    "model.onnx": (lambda p: p.write_bytes(b"\x08\x09"), "is ONNX"),
    "model.h5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), "is HDF5"),
    "noname": (lambda p: p.write_bytes(b"\x1c\0\0\0TFL3"), "is TensorFlow Lite"),
    "a.zip": (write_zip, "is no file of torch.export.save"),
    "half.pt2": (write_half, "is no file of torch.export.save"),
    "empty.pt2": (lambda p: p.write_bytes(b""), "is no file of torch.export.save"),
}


def test_folders_get_one_sentence_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", str(tmp_path / "out.pt")]
    assert f"{tmp_path} is a folder: name" in failing(["export", str(tmp_path), *out], capsys)
    (tmp_path / "config.json").write_text("{}")
    said = failing(["export", str(tmp_path), *out], capsys)
    assert f"python -m lamina export hf {tmp_path} --task" in said


@pytest.mark.parametrize("name", FILES)
def test_other_files_get_one_sentence_that_says_what_to_do(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    write, about = FILES[name]
    write(path)
    said = failing(["export", str(path), "-o", str(tmp_path / "out.pt")], capsys)
    assert f"error: {path} {about}" in said
    assert not (tmp_path / "out.pt").exists()


def test_requests_of_numpy_become_samples(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / name) for name in ("first.npz", "second.npz")]
    requests = [{"ids": torch.tensor([[place, 7]])} for place in (1, 2)]
    for file, request in zip(files, requests, strict=True):
        numpy.savez(file, ids=request["ids"].numpy())
    out = tmp_path / "samples.safetensors"
    assert main(["samples", *files, "-o", str(out)]) == DONE
    sha256 = lamina.samples(tmp_path / "same.safetensors", requests)
    assert sha256 in capsys.readouterr().out
    assert out.read_bytes() == (tmp_path / "same.safetensors").read_bytes()
    (tmp_path / "second.npz").write_text("nothing")
    assert "second.npz is no .npz" in failing(["samples", *files, "-o", str(out)], capsys)


def test_it_runs_as_a_module(saved: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "lamina", "export", str(saved), "--json"],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        check=True,
        text=True,
    )
    assert json.loads(ran.stdout)["operators"] > 0
