"""Draws the benchmarks' figures as SVG.

python plot.py FOLDER    reads figure.csv and splits.csv there, if they exist
"""

import csv
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams.update(
    {
        "svg.hashsalt": "lamina",
        "svg.fonttype": "none",
        "font.size": 10,
        "axes.grid": True,
        "grid.alpha": 0.3,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
)

from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

Row = dict[str, str]
# Colour, line and marker of each solver; the same in every figure.
STYLES = {
    "optimal": ("#0072b2", "-", "o"),
    "genetic": ("#d55e00", "-", "s"),
    "neurosurgeon": ("#009e73", "-", "^"),
    "dads": ("#56b4e9", "--", "v"),
    "first-fit": ("#cc79a7", "-", "D"),
    "cloud-only": ("#000000", "--", "x"),
    "device-only": ("#999999", ":", "+"),
    "milp (microlp)": ("#e69f00", "-", "P"),
    "HiGHS": ("#b22222", "-", "*"),
    "HiGHS, published form": ("#b22222", ":", "*"),
    "CPLEX CE": ("#6a3d9a", ":", "h"),
    "CPLEX CE, quadratic": ("#6a3d9a", "-", "h"),
}
PROVED = {"optimal", "infeasible"}
EXACT = {s for s in STYLES if s.startswith(("optimal", "milp", "HiGHS", "CPLEX"))}


def read(path: Path) -> list[Row]:
    """The rows of a CSV file."""
    with path.open() as file:
        return list(csv.DictReader(file))


def save(figure: Figure, path: Path) -> None:
    """Writes a figure without its date, so that equal figures are equal files."""
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    print(f"drew {path.name}")


def lines(
    axes: Axes, rows: list[Row], solvers: list[str], figure: Callable[[Row], float | None]
) -> None:
    """A line of medians over nodes per solver."""
    for solver in solvers:
        by_nodes: dict[int, list[float]] = defaultdict(list)
        for row in rows:
            value = figure(row) if row["solver"] == solver else None
            if value is not None:
                by_nodes[int(row["nodes"])].append(value)
        if by_nodes:
            nodes = sorted(by_nodes)
            medians = [statistics.median(by_nodes[n]) for n in nodes]
            colour, line, mark = STYLES[solver]
            axes.plot(
                nodes,
                medians,
                color=colour,
                linestyle=line,
                marker=mark,
                markersize=5,
                label=solver,
                zorder=3 if solver == "optimal" else 2,
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([3, 10, 30, 100, 300, 1000], labels=["3", "10", "30", "100", "300", "1000"])
    axes.minorticks_off()
    axes.set_xlim(2.7, 1100)
    axes.set_xlabel("nodes")


def legend(axes: Axes) -> None:
    """A legend beside the axes."""
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def latency(rows: list[Row], folder: Path) -> None:
    """Latency of each strategy's placement."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    solvers = [s for s in STYLES if s not in EXACT or s == "optimal"]

    def seconds(row: Row) -> float | None:
        return float(row["latency_seconds"]) if row["latency_seconds"] else None

    lines(axes, rows, solvers, seconds)
    axes.set_ylabel("latency, s")
    axes.set_title("GoogLeNet with two side exits, iot_edge_cloud: latency")
    legend(axes)
    save(figure, folder / "latency.svg")


def is_settled(runs: list[Row]) -> bool:
    """Whether more than half of an exact method's runs were proved, so that the median is."""
    proved = sum(r["status"] in PROVED for r in runs)
    return runs[0]["solver"] not in EXACT or 2 * proved > len(runs)


def solve_time(rows: list[Row], folder: Path) -> None:
    """Solve time, if most runs were proved."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    by_cell: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        by_cell[row["solver"], row["nodes"]].append(row)
    settled = [row for runs in by_cell.values() if is_settled(runs) for row in runs]
    solvers = [s for s in STYLES if s in EXACT or s == "genetic"]
    lines(axes, settled, solvers, lambda row: float(row["solve_seconds"]))
    axes.set_ylabel("solve time, s")
    axes.set_title("Solve time; a line ends where most runs were not proved in time")
    legend(axes)
    save(figure, folder / "solve-time.svg")


def memory(rows: list[Row], folder: Path) -> None:
    """Peak memory of the process."""
    figure, axes = plt.subplots(figsize=(8, 4.5))

    def megabytes(row: Row) -> float | None:
        return float(row["peak_bytes"]) / 1e6 if row["status"] != "rejected" else None

    lines(axes, rows, [s for s in STYLES if s in EXACT or s == "genetic"], megabytes)
    axes.set_ylabel("peak memory of the process, MB")
    axes.set_title("Memory, problem included")
    legend(axes)
    save(figure, folder / "memory.svg")


def grid(axes: Axes, rows: list[Row], title: str, cell: Callable[[Row], tuple[float, str]]) -> None:
    """A table of coloured cells, questions by models."""
    questions = list(dict.fromkeys(r["question"] for r in rows))
    models = list(dict.fromkeys(r["model"] for r in rows))
    values = [[float("nan")] * len(models) for _ in questions]
    for row in rows:
        y, x = questions.index(row["question"]), models.index(row["model"])
        values[y][x], text = cell(row)
        dark = values[y][x] > 0.6
        axes.text(x, y, text, ha="center", va="center", color="white" if dark else "black")
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(models)), models, rotation=30, ha="right")
    axes.set_yticks(range(len(questions)), questions)
    axes.set_title(title)
    axes.grid(visible=False)


def splits(rows: list[Row], folder: Path) -> None:
    """Share of worlds in which a split is best, and its gain there."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), sharey=True)

    def share(row: Row) -> tuple[float, str]:
        value = float(row["split_share"])
        return value, f"{value:.0%}"

    def gain(row: Row) -> tuple[float, str]:
        value = float(row["median_gain"])
        has_gain = float(row["split_share"]) > float(row["only_split_share"])
        return min(value - 1, 1.0), f"{value:.2f}x" if has_gain else "-"

    grid(left, rows, "share of worlds where a split is best", share)
    grid(right, rows, "median gain there over the best whole", gain)
    save(figure, folder / "splits.svg")


def main() -> None:
    """Draws the existing data."""
    folder = Path(sys.argv[1])
    if (folder / "figure.csv").exists():
        rows = read(folder / "figure.csv")
        latency(rows, folder)
        solve_time(rows, folder)
        memory(rows, folder)
    if (folder / "splits.csv").exists():
        splits(read(folder / "splits.csv"), folder)


if __name__ == "__main__":
    main()
