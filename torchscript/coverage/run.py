"""One row: export, prepare with the real agent, prove the blocks equal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import check
import export
from isolated import IsolatedError, isolated

if TYPE_CHECKING:
    from entry import Entry

# Wall clock. The agent has a limit of its own on what it computes.
EXPORT_SECONDS = 300.0
PREPARE_SECONDS = 900.0
CHECK_SECONDS = 420.0

# The share of the FLOPs that one block may hold of a model that counts as cut.
MOST_FLOPS = 0.6

CUT = "cut"
LOPSIDED = "lopsided"
WHOLE = "whole"
REFUSED = "refused"
FAILED = "failed"
NOT_EXPORTED = "not exported"
WRONG = "wrong"


@dataclass(frozen=True)
class Bench:
    """Where files are, and what is tried; `digest` is that of the agent and the checker."""

    agent: Path
    digest: str
    models: Path
    results: Path


def row(entry: Entry, bench: Bench) -> dict[str, object]:
    """The result, kept in the folder of results until the model or `bench` change."""
    base = {"name": entry.name, "group": entry.group, "model": entry.model, "mode": entry.mode}
    try:
        path = Path(isolated(_exported, EXPORT_SECONDS, entry, bench.models))
    except IsolatedError as error:
        return base | {"status": NOT_EXPORTED, "why": _first_line(error)}
    kept = bench.results / f"{path.stem}-{bench.digest}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    result = base | {"file_bytes": path.stat().st_size} | _tried(entry, path, bench)
    kept.parent.mkdir(parents=True, exist_ok=True)
    unfinished = kept.with_suffix(".part")
    unfinished.write_text(json.dumps(result, indent=1))
    unfinished.rename(kept)
    return result


def _exported(entry: Entry, folder: Path) -> str:
    return str(export.export(entry, folder))


def _tried(entry: Entry, model: Path, bench: Bench) -> dict[str, object]:
    out = Path(tempfile.mkdtemp(prefix="lamina-coverage-"))
    try:
        start = time.monotonic()
        try:
            line = _prepare(entry, model, out, bench.agent)
        except subprocess.TimeoutExpired:
            return {"status": WRONG, "why": f"preparing was not done in {PREPARE_SECONDS:.0f} s"}
        seconds = time.monotonic() - start
        if "manifest" not in line:
            return _refused(line, model) | {"seconds": seconds}
        found = _of_manifest(line["manifest"]) | {"seconds": seconds}
        try:
            proof = isolated(_checked, CHECK_SECONDS, entry, model, out, line["manifest"])
        except IsolatedError as error:
            return found | {"status": WRONG, "why": _first_line(error)}
        return found | {"check": proof}
    finally:
        shutil.rmtree(out, ignore_errors=True)


def _prepare(entry: Entry, model: Path, out: Path, agent: Path) -> dict:
    """The last line that the agent says."""
    command = [str(agent), "prepare", str(model), "--out", str(out), "--json"]
    for value in entry.inputs:
        command += ["--input", value.argument()]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=PREPARE_SECONDS,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    lines = done.stdout.splitlines()
    last = json.loads(lines[-1]) if lines else {}
    if "manifest" in last or "error" in last:
        return last
    ended = f"the agent ended with code {done.returncode} after: {done.stderr.strip()[-300:]}"
    return {"crash": ended}


def _refused(line: dict, model: Path) -> dict[str, object]:
    if "crash" in line:
        return {"status": WRONG, "why": line["crash"]}
    error = line["error"]
    # A good reason lies in the model; whatever else stops preparing is a fault of Lamina's.
    status = REFUSED if error["reason"] in ("InvalidModel", "InputMismatch") else FAILED
    why = error["message"].replace(str(model), "the file")
    return {"status": status, "why": why, "reason": error["reason"]}


def _of_manifest(manifest: dict) -> dict[str, object]:
    blocks = manifest["blocks"]
    share = _largest_share([block["flops"] for block in blocks])
    # Where one operation has them nothing could be divided; the slicer alone can tell.
    is_lopsided = share > MOST_FLOPS and "lopsidedShare" in manifest
    cut = LOPSIDED if is_lopsided else CUT
    return {
        "status": cut if len(blocks) > 1 else WHOLE,
        "largest_share": share,
        "rung": manifest["rung"],
        "why": manifest["rungReason"],
        "blocks": len(blocks),
        "cuts": [
            [_written(value) for value in _crossing(manifest, i)] for i in range(1, len(blocks))
        ],
        "compared": manifest["check"]["compared"],
        "max_abs_diff": manifest["check"]["maxAbsDiff"],
        "block_bytes": sum(block["fileBytes"] for block in blocks),
        "is_batch_free": any(check.has_rows(value) for value in manifest["inputs"]),
        "sizes": manifest["check"].get("sizes", {}),
    }


def _largest_share(flops: list[int]) -> float:
    """The share of the FLOPs in the block with the most; 0 where there are none."""
    return max(flops, default=0) / max(sum(flops), 1)


def _crossing(manifest: dict, border: int) -> list[dict]:
    """The values that a host must be given which runs the blocks from `border` on."""
    needed = {name for block in manifest["blocks"][border:] for name in block["inputs"]}
    before = [o for block in manifest["blocks"][:border] for o in block["outputs"]]
    return [value for value in manifest["inputs"] + before if value["name"] in needed]


def _written(value: dict) -> str:
    sizes = "x".join(str(size) for size in value["shape"])
    return f"{value['datatype']}:{sizes}"


def _checked(entry: Entry, model: Path, out: Path, manifest: dict) -> dict[str, object]:
    return check.check(model, out, manifest, entry.draw, entry.draw_sized).json()


def _first_line(error: Exception) -> str:
    """The line that says most: exceptions of TorchScript bring pages of code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if lines[0].endswith(":"):  # what it is alone; the next line says what was wrong
        lines[0] = " ".join(lines[:2])
    return lines[0][:300]
