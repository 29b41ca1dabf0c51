import re
from pathlib import Path

import pytest

from lamina import metadata

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_the_readmes_blocks_run_one_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    # What comments say is printed is printed.
    printed = capsys.readouterr().out
    for claim in re.findall(r"\)  # (\(.*\))$", "".join(blocks), re.MULTILINE):
        assert claim in printed


def test_the_readme_documents_the_format_as_the_module_does() -> None:
    def rows(text: str) -> list[str]:
        return [line for line in text.splitlines() if line.startswith("|")]

    assert rows(metadata.__doc__ or "") == rows(README)
