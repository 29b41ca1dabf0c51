"""The table as Markdown for people and as CSV for programs. Pure."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, defaultdict

from run import CUT, FAILED, LOPSIDED, NOT_EXPORTED, REFUSED, WHOLE, WRONG

Row = dict[str, object]

_HEADER = """# Coverage

Which models Lamina cuts, and what proves the pieces equal to the whole. Written by
`cargo xtask coverage`; do not edit. [models.md](models.md) says how to bring a model and
what to do where it stays in one piece; [coverage.csv](coverage.csv) has all columns, the
values at every cut among them.

Weights are random but telling: rescaled, and BatchNorm calibrated, until two inputs get
clearly different answers (`differ by`: the largest difference of two answers over the
largest magnitude in them). Each file is prepared by `lamina-node-agent prepare`, locked up
as in a cluster, which compares the value at **every** boundary with the whole model's, bit
for bit, on two requests and on both as a batch, and at several sizes where more than the batch
is free. A checker in Python that shares no code with the slicer then loads model and blocks
with `torch.jit.load`, chains the blocks by the manifest and compares the outputs bit for
bit at batch 1 on two requests of its own, at batch 3, and on up to 20 further requests
(`requests`: answered, and refused by an assertion) of batches of 1 to 8, and of any sizes
within the bounds, the smallest and the largest among them; of large models as many as a
minute allows, eight at least.

`tr` is traced, `sc` scripted, `ex` a program of torch.export and `sdk` a network with exits,
both written by [the SDK](../sdk/README.md). Rungs: `direct`
cuts where one tensor is live; `typed` cuts where several values are; `retraced` was traced
again in libtorch; `whole` is one block. `values` is the largest number of values at a cut.
Batch 3 is `fixed` where the manifest holds one batch size, because tracing baked it in.
`largest` is the share of the FLOPs in the block with the most: a model counts as cut where
that is 60 % at most or one operation alone has them, else as lopsided. `asserts` is the
number of blocks that assert what they assume of a request; `free` names the free sizes.
"""


_REASONS = {
    WRONG: "Wrong",
    FAILED: "Failed to prepare",
    LOPSIDED: "Lopsided",
    WHOLE: "Served whole",
    REFUSED: "Refused",
    NOT_EXPORTED: "Not exported by PyTorch",
}


def summary(rows: list[Row]) -> str:
    """One line of counts."""
    counts = Counter(row["status"] for row in rows)
    exact = sum(1 for row in rows if row["status"] == CUT)
    parts = [f"{len(rows)} files", f"{exact} cut and bit-exact", f"{counts[WRONG]} wrong"]
    others = [(LOPSIDED, "lopsided"), (WHOLE, "served whole"), (REFUSED, "refused")]
    others.append((FAILED, "failed to prepare"))
    parts += [f"{counts[status]} {text}" for status, text in others]
    return ", ".join([*parts, f"{counts[NOT_EXPORTED]} not exported"])


def markdown(rows: list[Row], made: str) -> str:
    """The whole page; `made` says when, where and with what."""
    parts = [_HEADER, f"## Summary\n\n{_summary_table(rows)}\n{made}\n"]
    for status, title in _REASONS.items():
        parts.append(_reasons(rows, status, title))
    parts.append("## Files\n")
    groups = dict.fromkeys(row["group"] for row in rows)
    parts += [_group(str(group), [r for r in rows if r["group"] == group]) for group in groups]
    return "\n".join(part for part in parts if part)


def _summary_table(rows: list[Row]) -> str:
    groups = dict.fromkeys(row["group"] for row in rows)
    shown = (CUT, LOPSIDED, WHOLE, REFUSED, FAILED, NOT_EXPORTED, WRONG)
    heads = ["", "files", "cut, bit-exact", *shown[1:]]
    lines = [_line(heads), _line(["---"] + ["---:"] * (len(shown) + 1))]
    for group in [*groups, None]:
        mine = [row for row in rows if group in (None, row["group"])]
        counts = Counter(row["status"] for row in mine)
        numbers = [counts[s] for s in shown]
        name = "**all**" if group is None else str(group)
        lines.append(_line([name, str(len(mine)), *map(str, numbers)]))
    rungs = Counter(str(row["rung"]) for row in rows if row["status"] == CUT)
    cut = ", ".join(f"{count} {rung}" for rung, count in rungs.most_common())
    blocks = sorted(int(row["blocks"]) for row in rows if row["status"] == CUT)
    median = blocks[len(blocks) // 2] if blocks else 0
    batches = Counter(str(row["check"]["large_batch"]) for row in rows if "check" in row)
    batch = ", ".join(f"{count} {what}" for what, count in batches.most_common())
    proofs = [row["check"] for row in rows if isinstance(row.get("check"), dict)]
    answered = sum(int(proof["answered"]) for proof in proofs)
    refused = sum(int(proof["refused"]) for proof in proofs)
    asserting = sum(1 for proof in proofs if proof["assertions"])
    sized = sum(1 for row in rows if row.get("sizes"))
    return "\n".join(lines) + (
        f"\n\nCut: {cut}; median {median} blocks. Batch 3: {batch}. Further requests: {answered} "
        f"exact, {refused} refused by assertions, which {asserting} files have. {sized} files have "
        "free sizes beside the batch.\n"
    )


def _reasons(rows: list[Row], status: str, title: str) -> str:
    by_reason: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row["status"] == status:
            # How many operations there are does not make another reason.
            why = re.sub(r"\d+ heavy", "N heavy", str(row["why"]))
            why = re.sub(r"\d+ % of the FLOPs", "N % of the FLOPs", why)
            by_reason[why].append(str(row["name"]))
    if not by_reason:
        return ""
    lines = [f"## {title}\n", _line(["why", "files"]), _line(["---", "---"])]
    for why, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
        lines.append(_line([_escaped(why), ", ".join(names)]))
    return "\n".join(lines) + "\n"


def _group(group: str, rows: list[Row]) -> str:
    heads = ["file", "rung", "blocks", "largest", "values", "compared", "batch 1", "batch 3"]
    heads += ["requests", "asserts", "free", "differ by", "MB file → blocks", "prepare s"]
    lines = [f"### {group}\n", _line(heads), _line(["---", "---"] + ["---:"] * 12)]
    lines += [_line(_cells(row)) for row in rows]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> list[str]:
    name = f"{row['model']} {row['mode']}"
    if row["status"] == NOT_EXPORTED or "rung" not in row:
        return [name, str(row["status"])] + ["-"] * 11 + [_seconds(row)]
    check = row.get("check")
    batch = ["**no**", "-", "-", "-", "-", "-"]
    if isinstance(check, dict):
        large = str(check["large_batch"])
        large = "exact" if large == "exact" else large.replace("fixed, but", "fixed though")
        refused = f" + {check['refused']}" if check["refused"] else ""
        free = ["batch"] if row["is_batch_free"] else []
        batch = ["exact", large, f"{check['answered']}{refused}", str(check["assertions"] or "-")]
        batch.append(", ".join([*free, *row["sizes"]]) or "-")
        batch.append(f"{100 * float(check['telling']):.2g} %")
    values = max((len(cut) for cut in row["cuts"]), default=0)
    sizes = f"{_megabytes(row['file_bytes'])} → {_megabytes(row['block_bytes'])}"
    share = f"{100 * float(str(row['largest_share'])):.0f} %" if row["largest_share"] else "-"
    numbers = [str(row["blocks"]), share, str(values or "-"), str(row["compared"])]
    return [name, str(row["rung"]), *numbers, *batch, sizes, _seconds(row)]


def _seconds(row: Row) -> str:
    return f"{row['seconds']:.1f}" if "seconds" in row else "-"


def _megabytes(count: object) -> str:
    return f"{int(str(count)) / 1e6:.2f}"


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_COLUMNS = ["name", "group", "model", "mode", "status", "rung", "why", "blocks", "largest_share"]
_COLUMNS += ["compared"]
_COLUMNS += ["max_abs_diff", "batch_3", "answered", "refused", "assertions", "free"]
_COLUMNS += ["telling", "same_boundaries", "file_bytes"]
_COLUMNS += ["block_bytes", "seconds", "cuts"]


def table(rows: list[Row]) -> str:
    """CSV; `cuts` are the values at each cut, cuts separated by spaces, values by `+`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        check = row.get("check") or {}
        proof = {
            "batch_3": check.get("large_batch", ""),
            "answered": check.get("answered", ""),
            "refused": check.get("refused", ""),
            "assertions": check.get("assertions", ""),
            "free": " ".join(row.get("sizes", {})),
            "telling": f"{check['telling']:.3g}" if check else "",
            "same_boundaries": len(check["same_boundaries"]) if check else "",
            "seconds": f"{row['seconds']:.1f}" if "seconds" in row else "",
            "cuts": " ".join("+".join(cut) for cut in row.get("cuts", [])),
        }
        writer.writerow(row | proof)
    return text.getvalue()
