import re
import subprocess
import sys
from pathlib import Path

import lamina

ROOT = Path(__file__).parent.parent


def run(*args: str) -> str:
    command = [sys.executable, str(ROOT / "examples" / "digits.py"), *args]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_trains_learns_and_exports(tmp_path: Path) -> None:
    path = tmp_path / "digits.pt"
    printed = run("--out", str(path), "--epochs", "15", "--accuracy", "0.96")
    assert "equal to the network, bit for bit" in printed
    last = re.search(r"^final .* ([0-9.]+)%$", printed, re.MULTILINE)
    assert last is not None
    assert float(last[1]) > 95.0
    metadata = lamina.read_metadata(path)
    assert [e.place.name for e in metadata.exits] == ["early", "middle", "final"]
    assert metadata.expected is not None
    assert metadata.expected.accuracy >= 0.96
    assert metadata.exits[0].threshold is not None


def test_the_example_explains_itself() -> None:
    assert "--exit-rate" in run("--help")
