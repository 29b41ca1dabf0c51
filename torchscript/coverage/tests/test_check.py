from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from check import WrongError, check
from entry import Input

INPUTS = [Input("x", (-1, 4)), Input("scale", (-1, 1))]


class First(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.layer(x))


class Second(nn.Module):
    """Overwrites what it takes, as a block may."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, y: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer(y.mul_(scale)), scale.add_(1)


class Whole(nn.Module):
    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, scale: Tensor) -> dict[str, Tensor]:
        logits, count = self.second(self.first(x), scale)
        return {"logits": logits, "count": count}


def value(name: str, *shape: int) -> dict:
    return {"name": name, "datatype": "FP32", "shape": list(shape)}


def draw(batch: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [given.draw(batch, generator) for given in INPUTS]


@pytest.fixture
def parts() -> tuple[First, Second]:
    torch.manual_seed(0)
    return First().eval(), Second().eval()


@pytest.fixture
def manifest() -> dict:
    outputs = [value("logits", -1, 3), value("count", -1, 1)]
    return {
        "inputs": [value("x", -1, 4), value("scale", -1, 1)],
        "outputs": outputs,
        "blocks": [
            {"digest": "a", "inputs": ["x"], "outputs": [value("y", -1, 4)]},
            {"digest": "b", "inputs": ["y", "scale"], "outputs": outputs},
        ],
    }


def save(folder: Path, parts: tuple[nn.Module, nn.Module]) -> Path:
    """The model; its blocks beside it, which may be changed afterwards."""
    model = folder / "model.pt"
    torch.jit.script(Whole(*parts)).save(str(model))
    for name, part in zip("ab", parts, strict=True):
        torch.jit.script(part).save(str(folder / f"{name}.pt"))
    return model


def test_equal_blocks_pass_with_what_was_seen(
    tmp_path: Path, parts: tuple[First, Second], manifest: dict
) -> None:
    found = check(save(tmp_path, parts), tmp_path, manifest, draw)
    # Two requests, one of three rows, and twenty more.
    assert found.boundary_values == 3 * (3 + 20)
    assert (found.answered, found.refused, found.assertions) == (20, 0, 0)
    assert found.large_batch == "exact"
    assert found.telling > 0.01
    assert found.same_boundaries == []


def test_the_last_bit_of_one_weight_is_seen(
    tmp_path: Path, parts: tuple[First, Second], manifest: dict
) -> None:
    model = save(tmp_path, parts)
    with torch.no_grad():
        parts[1].layer.bias[0] = torch.nextafter(parts[1].layer.bias[0], torch.tensor(9.0))
    torch.jit.script(parts[1]).save(str(tmp_path / "b.pt"))
    with pytest.raises(WrongError, match=r"batch 1, request 1: output `logits` differs"):
        check(model, tmp_path, manifest, draw)


def test_values_that_are_not_as_declared_are_named(
    tmp_path: Path, parts: tuple[First, Second], manifest: dict
) -> None:
    model = save(tmp_path, parts)
    manifest["blocks"][0]["outputs"] = [value("y", -1, 5)]
    with pytest.raises(WrongError, match="block 0 gives `y` as torch"):
        check(model, tmp_path, manifest, draw)


def test_a_shape_that_holds_at_batch_1_alone_is_seen(
    tmp_path: Path, parts: tuple[First, Second], manifest: dict
) -> None:
    model = save(tmp_path, parts)
    manifest["blocks"][0]["outputs"] = [value("y", 1, 4)]
    with pytest.raises(WrongError, match=r"declared is FP32 \[1, 4\]"):
        check(model, tmp_path, manifest, draw)


def test_missing_outputs_are_seen(
    tmp_path: Path, parts: tuple[First, Second], manifest: dict
) -> None:
    model = save(tmp_path, parts)
    manifest["outputs"] = manifest["outputs"][:1]
    with pytest.raises(WrongError, match="1 outputs declared, the model gives 2"):
        check(model, tmp_path, manifest, draw)


def test_a_fixed_batch_that_the_model_does_not_ask_for_is_told(
    tmp_path: Path, parts: tuple[First, Second], manifest: dict
) -> None:
    model = save(tmp_path, parts)
    blocks = manifest["blocks"]
    for values in (manifest["inputs"], *(block["outputs"] for block in blocks)):
        for spec in values:
            spec["shape"][0] = 1
    assert check(model, tmp_path, manifest, draw).large_batch == "fixed, but the model takes more"


def test_boundaries_that_tell_nothing_are_counted(
    tmp_path: Path, parts: tuple[First, Second], manifest: dict
) -> None:
    with torch.no_grad():
        parts[0].layer.weight.zero_()
    found = check(save(tmp_path, parts), tmp_path, manifest, draw)
    assert found.same_boundaries == ["y"]
