import csv
import os
import signal
import time

import pytest
import torch

import registry
import report
import run
from entry import Input, free
from isolated import IsolatedError, isolated

CUT = {
    "name": "net.tr",
    "group": "nets",
    "model": "net",
    "mode": "tr",
    "status": "cut",
    "rung": "direct",
    "why": None,
    "blocks": 2,
    "largest_share": 0.55,
    "cuts": [["FP32:-1x8", "INT64:-1"]],
    "compared": 2,
    "max_abs_diff": 0.0,
    "file_bytes": 2_000_000,
    "block_bytes": 1_990_000,
    "seconds": 1.25,
    "is_batch_free": True,
    "sizes": {"h": [8, 20, 64]},
    "check": {
        "telling": 0.5,
        "large_batch": "exact",
        "same_boundaries": [],
        "assertions": 1,
        "answered": 19,
        "refused": 1,
    },
}
BASE = {"group": "nets", "model": "other", "mode": "sc"}
REFUSED = BASE | {"name": "other.sc", "status": "refused", "why": "a|b", "seconds": 2.0}
LOPSIDED = CUT | {
    "name": "heavy.sc",
    "status": "lopsided",
    "largest_share": 0.934,
    "why": "93 % of the FLOPs are in one block; traced again it is the same",
}
WRONG = {k: v for k, v in CUT.items() if k != "check"} | {
    "name": "bad.tr",
    "status": "wrong",
    "why": "output `x` differs",
}


def test_rows_and_reasons_are_in_the_page() -> None:
    page = report.markdown([CUT, LOPSIDED, REFUSED, WRONG], "made today")
    assert "| net tr | direct | 2 | 55 % | 2 | 2 | exact | exact | 19 + 1 | 1 | batch, h |" in page
    assert "| 50 % | 2.00 → 1.99 |" in page
    assert "| other sc | refused | - | - | - | - | - | - | - | - | - | - | - | 2.0 |" in page
    assert "Further requests: 38 exact, 2 refused by assertions, which 2 files have" in page
    assert "| N % of the FLOPs are in one block; traced again it is the same | heavy.sc |" in page
    assert "| a\\|b | other.sc |" in page
    assert "| output `x` differs | bad.tr |" in page
    assert "| **all** | 4 | 1 | 1 | 0 | 1 | 0 | 0 | 1 |" in page
    assert report.summary([CUT, REFUSED, WRONG]).startswith("3 files, 1 cut and bit-exact, 1 wrong")


def test_the_csv_has_the_values_at_every_cut() -> None:
    row = next(csv.DictReader(report.table([CUT]).splitlines()))
    assert row["cuts"] == "FP32:-1x8+INT64:-1"
    assert row["batch_3"] == "exact"


def test_cuts_that_leave_most_of_the_work_in_one_block_are_lopsided() -> None:
    def status(flops: list[int], **more: object) -> object:
        block = {"inputs": [], "outputs": [], "fileBytes": 1}
        manifest = {
            "blocks": [block | {"flops": n} for n in flops],
            "rung": "typed",
            "rungReason": None,
            "check": {"compared": 1, "maxAbsDiff": 0.0},
            "inputs": [],
        }
        return run._of_manifest(manifest | more)["status"]

    assert status([1, 9], lopsidedShare=0.9) == "lopsided"
    assert status([1, 9]) == "cut"  # one operation has them
    assert status([4, 6], lopsidedShare=0.7) == "cut"
    assert status([0, 0]) == "cut"
    assert status([9], lopsidedShare=1.0) == "whole"


def test_inputs_are_written_as_the_agent_takes_them() -> None:
    ids = Input("ids", (-1, 12), "INT64", (0, 199))
    assert ids.argument() == "ids:INT64:-1x12:0:199"
    assert Input("image", (-1, 3, 8, 8)).argument() == "image:FP32:-1x3x8x8"
    sized = Input("image", (-1, 3, free("h:32..96/32@64"), free("w:8..9@8")))
    assert sized.argument() == "image:FP32:-1x3xh:32..96/32@64xw:8..9@8"
    assert sized.json()["value"]["shape"] == [-1, 3, -1, -1]
    generator = torch.Generator().manual_seed(0)
    assert sized.draw(2, generator).shape == (2, 3, 64, 8)
    assert sized.draw(2, generator, {"h": 96, "w": 9}).shape == (2, 3, 96, 9)


def test_names_are_unique_and_there_are_enough() -> None:
    assert len(registry.all_entries()) >= 300


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse() -> None:
    raise ValueError("the reason")


def test_what_crashes_or_hangs_ends_with_a_reason() -> None:
    assert isolated(os.getpid, 60) != os.getpid()
    with pytest.raises(IsolatedError, match=r"crashed \(SIGKILL"):
        isolated(_crash, 60)
    with pytest.raises(IsolatedError, match="ValueError: the reason"):
        isolated(_refuse, 60)
    with pytest.raises(IsolatedError, match="not done after 0 s"):
        isolated(time.sleep, 0.4, 600)
