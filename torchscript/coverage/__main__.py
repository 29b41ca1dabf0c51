"""Which models Lamina cuts: `cargo xtask coverage`.

`export` and `check` are for single models, which Lamina's own tests use; `table` tries all
of them; `programs` tries them as programs of torch.export. Run the folder:
`python torchscript/coverage table --help`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import check
import export
import programs
import registry
import report
import run


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="coverage", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("export", help="write single models as FOLDER/NAME.pt")
    one.add_argument("folder", type=Path)
    one.add_argument("names", nargs="+")
    proof = commands.add_parser("check", help="prove BLOCKS/NAME equal to MODELS/NAME.pt")
    proof.add_argument("models", type=Path)
    proof.add_argument("blocks", type=Path)
    proof.add_argument("names", nargs="+")
    all_of_them = commands.add_parser("table", help="try all models and write the table")
    all_of_them.add_argument("--agent", type=Path, required=True)
    all_of_them.add_argument("--models", type=Path, required=True, help="exported files")
    all_of_them.add_argument("--results", type=Path, required=True, help="one file a row")
    all_of_them.add_argument("--docs", type=Path, help="folder for coverage.md and coverage.csv")
    all_of_them.add_argument("--only", default="", help="part of a name; writes no table")
    all_of_them.add_argument("--jobs", type=int, default=1)
    exported = commands.add_parser("programs", help="try all networks as programs of torch.export")
    exported.add_argument("--results", type=Path, required=True, help="one file a network")
    exported.add_argument("--docs", type=Path, help="folder for coverage-programs.md")
    exported.add_argument("--only", default="", help="part of a name; writes no table")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.command == "export":
        return _export(arguments.folder, arguments.names)
    if arguments.command == "check":
        return _check(arguments.models, arguments.blocks, arguments.names)
    if arguments.command == "programs":
        return _programs(arguments)
    return _table(arguments)


def _export(folder: Path, names: list[str]) -> int:
    for name in names:
        path = export.export(registry.find(name), folder)
        # Rust finds them by the plain name; the other says when to make them anew.
        for suffix in (".json", ".pt"):
            link = folder / f"{name}{suffix}"
            link.unlink(missing_ok=True)
            link.symlink_to(path.with_suffix(suffix).name)
    return 0


def _check(models: Path, blocks: Path, names: list[str]) -> int:
    for name in names:
        manifest = json.loads((blocks / name / "manifest.json").read_text())
        try:
            draw = registry.find(name).draw
            found = check.check(models / f"{name}.pt", blocks / name, manifest, draw)
        except check.WrongError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        print(json.dumps({"name": name} | found.json()))
    return 0


def _table(arguments: argparse.Namespace) -> int:
    _import_all()
    wanted = [e for e in registry.all_entries() if arguments.only in e.name]
    if not wanted:
        print(f"no model's name contains {arguments.only!r}", file=sys.stderr)
        return 2
    bench = run.Bench(
        arguments.agent, _digest(arguments.agent), arguments.models, arguments.results
    )
    rows: list[report.Row] = []
    # Forks, for they have all the modules; each forks again for what may crash.
    with ProcessPoolExecutor(arguments.jobs, multiprocessing.get_context("fork")) as pool:
        for row in pool.map(partial(run.row, bench=bench), wanted):
            rows.append(row)
            _say(row, len(rows), len(wanted))
    print(report.summary(rows))
    if arguments.docs and not arguments.only:
        made = _made()
        (arguments.docs / "coverage.md").write_text(report.markdown(rows, made))
        (arguments.docs / "coverage.csv").write_text(report.table(rows))
    return 1 if any(row["status"] == run.WRONG for row in rows) else 0


def _programs(arguments: argparse.Namespace) -> int:
    _import_all()
    rows, digest = [], programs.digest(export.versions())
    wanted = programs.networks(registry.all_entries(), arguments.only)
    for entry in wanted:
        row = programs.row(entry, arguments.results, digest)
        rows.append(row)
        how = f"{row.operators} operators, {row.requests} requests" if row.requests else row.why
        done = f"{len(rows):4}/{len(wanted)} {row.model:40}"
        print(f"{done} {row.status:12} {row.seconds:6.1f} s  {how[:90]}", flush=True)
    print(programs.summary(rows))
    if arguments.docs and not arguments.only:
        (arguments.docs / "coverage-programs.md").write_text(programs.markdown(rows, _made()))
    return 1 if any(row.status == programs.REFUSED for row in rows) else 0


def _digest(agent: Path) -> str:
    """Changes where a row's result might: with the agent and with what judges it."""
    here = Path(__file__).parent
    parts = [agent, *(here / f"{name}.py" for name in ("check", "run", "values"))]
    digests = [hashlib.sha256(part.read_bytes()).digest() for part in parts]
    return hashlib.sha256(b"".join(digests)).hexdigest()[:12]


def _import_all() -> None:
    """Once, before forking for each model: it takes seconds."""
    import timm  # noqa: F401
    import transformers  # noqa: F401


def _say(row: report.Row, done: int, total: int) -> None:
    how = str(row.get("rung", row["status"])) if row["status"] != run.WRONG else "WRONG"
    blocks = f"{row['blocks']} blocks" if "blocks" in row else ""
    seconds = f"{row['seconds']:.1f} s" if "seconds" in row else ""
    why = str(row.get("why") or "")[:90]
    print(
        f"{done:4}/{total} {row['name']:44} {how:12} {blocks:>10} {seconds:>8}  {why}", flush=True
    )


def _made() -> str:
    """When, where and with what."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {export.versions()}, Python {platform.python_version()}; "
        f"{processor}, {os.cpu_count()} cores, Linux {platform.release()}; "
        "one thread a model. `prepare s` is wall clock, two models at a time where so asked."
    )


if __name__ == "__main__":
    sys.exit(main())
