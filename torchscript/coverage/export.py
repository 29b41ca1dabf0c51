"""Writes one row's model as a TorchScript file, with its inputs beside it."""

from __future__ import annotations

import contextlib
import inspect
import json
import sys
import warnings
from functools import cache
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor, nn

import telling
from entry import PROGRAM, SCRIPTED, Entry, Size
from small_models import SDK
from values import flat, spread

# Answers to two inputs differ by at least this share of their size, or a wrong
# chain of blocks might go unseen.
LEAST_DIFFERENCE = 1e-3


class NotTellingError(Exception):
    """The model gives two inputs (nearly) the same answer, or no numbers at all."""


@cache
def versions() -> str:
    """Of what makes the files."""
    found = []
    for package in ("torch", "torchvision", "timm", "transformers"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{package} {metadata.version(package)}")
    return " ".join(found)


def path_of(entry: Entry, folder: Path) -> Path:
    """Where `export` leaves the file; another name after each change of its making."""
    common = "".join(inspect.getsource(part) for part in (telling, _write, _write_program, _traced))
    return folder / f"{entry.name}-{entry.key(versions(), common)}.pt"


def export(entry: Entry, folder: Path) -> Path:
    """The file, made unless it is there; `.json` beside it lists its inputs."""
    path = path_of(entry, folder)
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        warnings.simplefilter("ignore")  # the end of TorchScript, announced at each use
        torch.manual_seed(0)
        torch.set_num_threads(1)
        _write(entry, unfinished)
        if entry.telling:
            _check_telling(entry, unfinished)
        inputs = [value.json() for value in entry.inputs]
        path.with_suffix(".json").write_text(json.dumps(inputs))
        unfinished.rename(path)
    return path


def _write(entry: Entry, path: Path) -> None:
    model = entry.build()
    model.requires_grad_(False)
    telling.make_telling(model, entry.draw)
    if entry.mode == SDK:
        import lamina

        lamina.export(model, path, entry.draw(2, 0)[0], input_name=entry.inputs[0].name)
    elif entry.mode == PROGRAM:
        _write_program(entry, model, path)
    elif entry.mode == SCRIPTED:
        torch.jit.save(torch.jit.script(model), str(path))
    else:
        torch.jit.save(_traced(model, entry.draw(1, 0)), str(path))


def _write_program(entry: Entry, model: nn.Module, path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "sdk"))
    import lamina

    def dimension(size: int | Size) -> object:
        if isinstance(size, Size):
            return torch.export.Dim.AUTO(min=size.low, max=size.high)
        return torch.export.Dim.AUTO if size == -1 else None

    free = tuple({i: dimension(s) for i, s in enumerate(v.shape)} for v in entry.inputs)
    # Names that take any number of tensors want the shapes one level down.
    takes_any = type(model).__name__ == "Plain"
    example = tuple(entry.draw(2, 0))
    program = torch.export.export(model, example, dynamic_shapes=(free,) if takes_any else free)
    lamina.export_program(program, path)


def _traced(model: nn.Module, example: list[Tensor]) -> torch.jit.ScriptModule:
    # Traces are compared with the file's answers later on, bit for bit.
    return torch.jit.trace(model, tuple(example), strict=False, check_trace=False)


def _check_telling(entry: Entry, path: Path) -> None:
    model = torch.jit.load(str(path))
    with torch.no_grad():
        first, second = (flat(model(*entry.draw(1, seed))) for seed in (1, 2))
    difference = spread(first, second)
    if not difference >= LEAST_DIFFERENCE:
        raise NotTellingError(f"two inputs' answers differ by {difference:.1e} of their size")


if __name__ == "__main__":
    from registry import find

    for name in sys.argv[2:]:
        print(export(find(name), Path(sys.argv[1])))
