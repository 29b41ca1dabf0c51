"""One row of the table of programs: torch.export, then the SDK's file, equal to eager or not."""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import telling
from entry import Entry
from isolated import IsolatedError, isolated

if TYPE_CHECKING:
    from collections.abc import Iterable

    from entry import Entry

SDK = Path(__file__).parents[2] / "sdk"
"""Of this checkout."""

GROUPS = ("classification", "segmentation", "video", "optical flow", "timm", "transformers")
"""Those of torchvision, timm and transformers that torch.export is for."""

SECONDS = 900.0
"""Wall clock of one row; more than this is a fault."""

EXACT = "exact"
NOT_EXPORTED = "not exported"
REFUSED = "refused"


@dataclass(frozen=True)
class Row:
    """What came of a network.

    Attributes:
        group: of the table.
        model: its name.
        status: `EXACT`, `NOT_EXPORTED` by torch.export, or `REFUSED` by the SDK.
        operators: calls of operators in the file.
        free: whether the batch is free in torch.export's program; in the file it is then too.
        requests: on which the file was equal to the eager network, bit for bit.
        seconds: of all of it.
        why: it is not exact.
    """

    group: str
    model: str
    status: str
    operators: int = 0
    free: bool = False
    requests: int = 0
    seconds: float = 0.0
    why: str = ""


def networks(entries: Iterable[Entry], only: str) -> list[Entry]:
    """One entry for each network, whatever the ways in which TorchScript exports it."""
    found = {e.model: e for e in entries if e.group in GROUPS and only in e.model}
    return list(found.values())


def digest(versions: str) -> str:
    """Changes where a row's result might: with what writes the file, and with what judges it."""
    here = Path(__file__).parent
    parts = [*(here / f"{name}.py" for name in ("programs", "telling"))]
    parts += sorted((SDK / "lamina/program").glob("*.py"))
    found = hashlib.sha256(versions.encode())
    for part in parts:
        found.update(part.read_bytes())
    return found.hexdigest()[:12]


def row(entry: Entry, results: Path, key: str) -> Row:
    """The result, kept in the folder of results until the model or `key` change."""
    kept = results / f"{entry.model}-{entry.key(key, '')}.json"
    if kept.exists():
        return Row(**json.loads(kept.read_text()))
    start = time.monotonic()
    try:
        found = isolated(_tried, SECONDS, entry)
    except IsolatedError as error:
        found = {"status": REFUSED, "why": str(error).partition("\n")[0][:300]}
    done = Row(entry.group, entry.model, seconds=time.monotonic() - start, **found)
    results.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(done.__dict__))
    return done


def _tried(entry: Entry) -> dict[str, object]:
    sys.path.insert(0, str(SDK))
    import lamina
    from lamina.program import said, shapes

    torch.manual_seed(0)
    torch.set_num_threads(1)
    network = entry.build().requires_grad_(False)
    telling.make_telling(network, entry.draw)
    example = tuple(entry.draw(2, 0))
    free = tuple({0: torch.export.Dim.AUTO} if v.shape[:1] == (-1,) else None for v in entry.inputs)
    # Names that take any number of tensors want the shapes one level down.
    takes_any = type(network).__name__ == "Plain"
    export = partial(torch.export.export, network, example)
    try:
        program = export(dynamic_shapes=(free,) if takes_any else free)
    except Exception as error:
        return {"status": NOT_EXPORTED, "why": said(error)[:300]}
    is_free = all(shape[0] == -1 for shape in shapes(program))
    with tempfile.TemporaryDirectory() as folder:
        try:
            report = lamina.export_program(program, Path(folder) / "model.pt", network=network)
        except lamina.ExportError as error:
            return {"status": REFUSED, "free": is_free, "why": str(error)[:300]}
    if is_free != report.is_batch_free:
        return {"status": REFUSED, "free": is_free, "why": "the batch is not free in the file"}
    requests = sum(check.equal for check in report.checks)
    return {
        "status": EXACT,
        "operators": report.operators,
        "free": is_free,
        "requests": requests,
    }


def summary(rows: list[Row]) -> str:
    """One line of counts."""
    exact = [r for r in rows if r.status == EXACT]
    free = sum(r.free for r in exact)
    return (
        f"{len(exact)} of {len(rows)} networks are exact, {free} of those with a free batch; "
        f"{sum(r.status == NOT_EXPORTED for r in rows)} are not exported by PyTorch, "
        f"{sum(r.status == REFUSED for r in rows)} are refused by the SDK"
    )


_HEADER = """# Programs of torch.export

Which networks `python -m lamina export` writes as files that Lamina serves. Written by
`cargo xtask coverage --programs`; do not edit. [models.md](models.md#from-torchexport) says how to
use it, [coverage.md](coverage.md) which files are cut.

Each network has random but telling weights, as in [coverage.md](coverage.md), and is exported with
a batch of two that may be any (`Dim.AUTO`). The file is exact where it gives what the **eager**
network and the program give, bit for bit, on each of `requests`: the example, other values, two
other batches (one of them 1), and four requests with batches drawn from 1 to 8. `free` says
whether the batch is free in PyTorch's program; it is then free in the file as well.
"""


def markdown(rows: list[Row], made: str) -> str:
    """The whole page; `made` says when, where and with what."""
    parts = [_HEADER, f"{summary(rows)}.\n\n{made}\n"]
    for group in dict.fromkeys(r.group for r in rows):
        lines = ["| network | operators | batch | requests | |", "|---|---:|---|---:|---|"]
        lines += [_line(r) for r in rows if r.group == group]
        parts.append(f"## {group}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _line(row: Row) -> str:
    if row.status != EXACT:
        why = row.why.replace("|", "\\|").replace("\n", " ")
        return f"| {row.model} | - | - | - | {row.status}: {why} |"
    batch = "free" if row.free else "fixed"
    return f"| {row.model} | {row.operators} | {batch} | {row.requests} | exact |"
