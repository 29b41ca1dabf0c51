import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lamina
from lamina.__main__ import DONE, FAILED, main
from lamina.onnx.numbers import Numbers

for package in ("onnx", "onnx2pytorch", "onnxruntime"):
    pytest.importorskip(package, reason="the extra lamina[onnx]")

onnx: Any = importlib.import_module("onnx")
FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


def node(kind: str, takes: str, gives: str, **attributes: object) -> Any:  # noqa: ANN401
    """An operator; names are separated by spaces."""
    return onnx.helper.make_node(kind, takes.split(), gives.split(), **attributes)


def saved(
    path: Path,
    nodes: list[Any],
    takes: list[tuple[str, int, list[int | str]]],
    gives: tuple[str, int],
    held: dict[str, Tensor],
) -> Path:
    """A file of ONNX."""
    helper = onnx.helper
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info(*t) for t in takes],
        [helper.make_tensor_value_info(gives[0], FLOAT, [None] * gives[1])],
        [onnx.numpy_helper.from_array(v.numpy(), k) for k, v in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path)
    return path


def words(path: Path) -> Path:
    """Ids, flattened as torch.onnx does it: the size is read, put into a shape, and that used."""
    generator = torch.Generator().manual_seed(0)
    nodes = [
        node("Gather", "table ids", "embedded"),
        node("Identity", "bias", "a.second.name"),
        node("Shape", "embedded", "shape"),
        node("Gather", "shape zero", "rows"),
        node("Mul", "rows two", "doubled"),
        node("Div", "doubled two", "halved"),
        node("Unsqueeze", "halved axes", "listed"),
        node("Concat", "listed rest", "wanted", axis=0),
        node("Reshape", "embedded wanted", "flat.one"),
        node("Gemm", "flat.one weight a.second.name", "hidden.two"),
        node("Slice", "shape begin end", "some"),
        node("ConstantOfShape", "some", "zeros"),
        node("Expand", "scale wanted_logits", "ones"),
        node("Mul", "hidden.two ones", "scaled"),
        node("Relu", "scaled", "logits"),
    ]
    held = {
        "table": torch.randn(30, 4, generator=generator),
        "weight": torch.randn(24, 5, generator=generator),
        "bias": torch.randn(5, generator=generator),
        "scale": torch.tensor([1.5]),
        "zero": torch.tensor(0),
        "two": torch.tensor(2),
        "axes": torch.tensor([0]),
        "rest": torch.tensor([-1]),
        "begin": torch.tensor([0]),
        "end": torch.tensor([1]),
        "wanted_logits": torch.tensor([1, 5]),
    }
    return saved(path, nodes, [("ids", INT64, ["batch", 6])], ("logits", 2), held)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def test_shapes_that_are_computed_leave_the_batch_free(file: Path, path: Path) -> None:
    report = lamina.export_onnx(words(file), path)
    assert report.is_batch_free
    ids = report.inputs[0]
    assert (ids.name, ids.shape, ids.low, ids.high) == ("ids", (-1, 6), 0, 29)
    assert {"batch 1", "batch 3", "request 4"} <= {c.why for c in report.checks if c.equal}
    assert any("at batches of 1, 2, 3, 5" in note for note in report.notes)
    loaded: Any = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    session = importlib.import_module("onnxruntime").InferenceSession(str(file))
    x = torch.randint(30, (4, 6))
    (expected,) = session.run(None, {"ids": x.numpy()})
    torch.testing.assert_close(loaded(x), torch.as_tensor(expected))


def convolution(file: Path, shape: list[int | str]) -> Path:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    takes: list[tuple[str, int, list[int | str]]] = [("image", FLOAT, shape)]
    return saved(file, [node("Conv", "image w", "y")], takes, ("y", 4), {"w": weight})


def test_other_sizes_that_are_free_are_declared_for_the_example(file: Path, path: Path) -> None:
    convolution(file, ["batch", 3, "high", "wide"])
    with pytest.raises(lamina.ArgumentError, match="--input image:FP32:-1x3x128x128"):
        lamina.export_onnx(file, path)
    declared = [lamina.Declared("picture", "FP32", (-1, 3, 8, 9))]
    report = lamina.export_onnx(file, path, inputs=declared)
    assert [(i.name, i.shape) for i in report.inputs] == [("picture", (-1, 3, -1, -1))]
    with pytest.raises(lamina.ArgumentError, match="is FP32 -1x3x-1x-1 in the file"):
        lamina.export_onnx(file, path, inputs=[lamina.Declared("x", "FP32", (-1, 4, 8, 8))])
    with pytest.raises(lamina.ArgumentError, match="takes 1 inputs"):
        lamina.export_onnx(file, path, inputs=declared * 2)


def test_a_batch_that_the_file_fixes_stays_fixed(file: Path, path: Path) -> None:
    report = lamina.export_onnx(convolution(file, [1, 3, 8, 8]), path)
    assert report.inputs[0].shape == (1, 3, 8, 8)
    assert any("at batches of 1" in note for note in report.notes)


def test_what_onnx_runtime_answers_otherwise_is_refused(
    file: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lamina.onnx import converting  # noqa: PLC0415

    monkeypatch.setattr(converting, "TOLERANCE", -1.0)
    with pytest.raises(lamina.ExportError, match="ONNX Runtime's answer differs"):
        lamina.export_onnx(words(file), path)
    assert not path.exists()


def test_files_that_are_none_are_refused(file: Path, path: Path) -> None:
    with pytest.raises(OSError, match=r"model\.onnx"):
        lamina.export_onnx(file, path)
    file.write_bytes(b"\x08\x09nonsense")
    with pytest.raises(lamina.ExportError, match="is no whole file of ONNX"):
        lamina.export_onnx(file, path)


def test_the_command_line(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words(file)
    assert main(["export", "onnx", str(file), "--json"]) == DONE
    said = capsys.readouterr()
    assert said.err == ""
    assert json.loads(said.out)["prepareCommand"].endswith("ids:INT64:-1x6:0:29 --out blocks")
    assert main(["export", "onnx", str(file), "-o", str(file)]) == FAILED
    assert "would overwrite what it is made of" in capsys.readouterr().err
    assert main(["export", str(file)]) == FAILED
    assert f"is ONNX: python -m lamina export onnx {file}" in capsys.readouterr().err


RULES: dict[str, tuple[Callable[[Tensor], Tensor], list[int]]] = {
    "an index": (lambda s: s[1], [5]),
    "indices": (lambda s: s[torch.tensor([2, 0])], [7, 3]),
    "a slice": (lambda s: s[1:], [5, 7]),
    "arithmetic": (lambda s: (s + 1) * 2 - s, [5, 7, 9]),
    "a quotient": (lambda s: torch.trunc(torch.true_divide(s, 2)).to(torch.int64), [1, 2, 3]),
    "a choice": (lambda s: torch.where(s > 4, s, torch.tensor([1, 1, 1])), [1, 5, 7]),
    "a product": (torch.prod, [105]),
    "joined": (lambda s: torch.cat([s[:1], s[2].unsqueeze(0)]), [3, 7]),
    "stacked": (lambda s: torch.stack([s[0], s[1]]), [3, 5]),
    "the rest of a division": (lambda s: torch.remainder(s, 4), [3, 1, 3]),
}


@pytest.mark.parametrize("rule", RULES)
def test_numbers_go_through_what_shapes_are_computed_with(rule: str) -> None:
    compute, expected = RULES[rule]
    # What torch itself would compute with says nothing.
    sizes = torch.zeros(3, dtype=torch.int64)
    with Numbers([(sizes, [3, 5, 7])]):
        found = compute(sizes)
        listed = found.tolist() if found.dim() else [found.item()]
    assert listed == expected
