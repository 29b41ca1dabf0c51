import hashlib
import json
import math
import re
from pathlib import Path

import pytest
import torch

import lamina


def read(path: Path) -> dict[str, torch.Tensor]:
    """Reads safetensors by its format, not by what wrote it."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    types = {"F32": torch.float32, "I64": torch.int64, "BF16": torch.bfloat16, "BOOL": torch.bool}
    tensors = {}
    for name, entry in json.loads(content[8 : 8 + length]).items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        count = math.prod(entry["shape"])
        flat = torch.frombuffer(bytearray(content[begin:end]), dtype=types[entry["dtype"]])
        assert flat.numel() == count
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def test_what_is_written_is_read_again_and_its_hash_is_the_files(tmp_path: Path) -> None:
    path = tmp_path / "samples.safetensors"
    requests = [
        {"ids": torch.tensor([[1, 40000]]), "x": torch.rand(1, 3).bfloat16(), "m": [True]},
        {"ids": torch.tensor([[7, 5]]), "x": torch.rand(3, 1).bfloat16().T, "m": [False]},
    ]
    sha256 = lamina.samples(path, requests)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    tensors = read(path)
    assert set(tensors) == {"0.ids", "0.x", "0.m", "1.ids", "1.x", "1.m"}
    for number, request in enumerate(requests):
        for name, value in request.items():
            assert torch.equal(tensors[f"{number}.{name}"], torch.as_tensor(value))
    assert path.stat().st_size % 8 == (2 * 16 + 2 * 6 + 2) % 8


@pytest.mark.parametrize(
    ("requests", "about"),
    [
        ([{"x": torch.ones(1)}], "give 2 to 16 requests, not 1"),
        ([{"x": torch.ones(1)}] * 17, "not 17"),
        ([{}, {}], "request 0 has no inputs"),
        ([{"x": torch.ones(1)}, {"y": torch.ones(1)}], "request 1 has y, request 0 has x"),
        ([{"x": torch.ones(1)}, {"x": torch.ones(2)}], "request 1: x is torch.float32 [2]"),
        ([{"x": torch.ones(1)}, {"x": torch.ones(1)}], "requests 0 and 1 are equal"),
        ([{"x": torch.ones(1, dtype=torch.complex64)}] * 2, "complex64, which Lamina does not"),
    ],
)
def test_what_no_model_can_be_prepared_with_is_named(
    tmp_path: Path, requests: list[dict[str, object]], about: str
) -> None:
    path = tmp_path / "samples.safetensors"
    with pytest.raises(lamina.ArgumentError, match=re.escape(about)):
        lamina.samples(path, requests)
    assert not path.exists()


def test_a_file_of_samples_stays_small(tmp_path: Path) -> None:
    large = torch.zeros(9 << 20)
    with pytest.raises(lamina.ArgumentError, match="give at most 66060288"):
        lamina.samples(tmp_path / "s", [{"x": large}, {"x": large + 1}])
