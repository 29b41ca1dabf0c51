from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import programs
from entry import Entry, Input, builder


class Halves(nn.Module):
    """Wants an even batch of two, and so fixes it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.size(0) == 2 else x


def module(kind: str) -> nn.Module:
    return Halves() if kind == "halves" else nn.Linear(4, 2)


def entry(kind: str) -> Entry:
    return Entry("timm", kind, "tr", builder(module, kind), (Input("x", (-1, 4)),))


@pytest.mark.filterwarnings("ignore")
def test_a_network_is_exact_or_says_why() -> None:
    torch.set_num_threads(1)
    found = programs._tried(entry("linear"))
    assert (found["status"], found["free"]) == (programs.EXACT, True)
    # The example, other values, two batches, four requests.
    assert found["requests"] == 8
    # A batch that the network itself fixes is no fault of the file's.
    found = programs._tried(entry("halves"))
    assert (found["status"], found["free"]) == (programs.EXACT, False)


def test_a_network_is_one_row_whatever_its_ways() -> None:
    twice = [entry("linear"), entry("linear"), entry("halves")]
    assert [e.model for e in programs.networks(twice, "")] == ["linear", "halves"]
    assert [e.model for e in programs.networks(twice, "halv")] == ["halves"]


def test_what_was_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"status": programs.EXACT, "requests": 8}, {"status": programs.REFUSED}])
    monkeypatch.setattr(programs, "isolated", lambda *_: next(answers))
    first = programs.row(entry("linear"), tmp_path, "one")
    assert programs.row(entry("linear"), tmp_path, "one") == first
    assert programs.row(entry("linear"), tmp_path, "two").status == programs.REFUSED


def test_the_table_has_counts_and_reasons() -> None:
    rows = [
        programs.Row("timm", "a", programs.EXACT, 5, free=True, requests=8),
        programs.Row("timm", "b", programs.REFUSED, why="it | differs"),
    ]
    page = programs.markdown(rows, "made")
    assert "1 of 2 networks are exact, 1 of those with a free batch" in page
    assert "| a | 5 | free | 8 | exact |" in page
    assert "| b | - | - | - | refused: it \\| differs |" in page
