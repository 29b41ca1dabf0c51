"""Solves one instance with a general solver and prints a line of JSON.

python solve_milp.py highs|cplex flow|products|quadratic INSTANCE.json SECONDS

One thread. Building the program is timed separately from solving it; a short solve is
repeated, and the median counts.
"""

import json
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from program import INFINITY, Floats, Program, read

MOST_RUNS = 5
ENOUGH_SECONDS = 0.5
GAP = 1e-7
FEASIBILITY = 1e-9
CPLEX_SIZE_LIMIT = 1016


@dataclass
class Found:
    """Result of a solver."""

    status: str
    bound: float | None = None
    solution: Floats | None = None
    note: str = ""


def highs(program: Program, limit: float) -> tuple[Found, float]:
    """Solves with HiGHS; also returns the seconds of solving."""
    import highspy  # noqa: PLC0415

    rows = program.rows
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = program.count, len(rows.low)
    model.col_cost_ = np.concatenate(program.objective)
    model.col_lower_, model.col_upper_ = np.zeros(program.count), np.ones(program.count)
    model.row_lower_, model.row_upper_ = np.array(rows.low), np.array(rows.high)
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.array(rows.starts)
    model.a_matrix_.index_ = np.concatenate(rows.columns)
    model.a_matrix_.value_ = np.concatenate(rows.values)
    whole, part = highspy.HighsVarType.kInteger, highspy.HighsVarType.kContinuous
    model.integrality_ = [whole if b else part for b in program.binary]
    solver = highspy.Highs()
    for option, value in {
        "output_flag": False,
        "threads": 1,
        "time_limit": limit,
        "mip_rel_gap": GAP,
        "mip_abs_gap": 0.0,
        "mip_feasibility_tolerance": FEASIBILITY,
        "primal_feasibility_tolerance": FEASIBILITY,
    }.items():
        solver.setOptionValue(option, value)
    solver.passModel(model)
    start = time.perf_counter()
    solver.run()
    seconds = time.perf_counter() - start
    status, info = solver.getModelStatus(), solver.getInfo()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Found("infeasible"), seconds
    bound = info.mip_dual_bound if np.isfinite(info.mip_dual_bound) else None
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Found("unknown", bound, note=solver.modelStatusToString(status)), seconds
    name = "optimal" if status == highspy.HighsModelStatus.kOptimal else "feasible"
    return Found(name, bound, np.array(solver.getSolution().col_value)), seconds


def cplex(program: Program, limit: float) -> tuple[Found, float]:
    """Solves with CPLEX; also returns the seconds of solving."""
    import cplex as api  # noqa: PLC0415
    from cplex.exceptions import CplexSolverError  # noqa: PLC0415

    rows = program.rows
    solver = api.Cplex()
    for silence in (
        solver.set_results_stream,
        solver.set_log_stream,
        solver.set_error_stream,
        solver.set_warning_stream,
    ):
        silence(None)
    settings = solver.parameters
    settings.threads.set(1)
    settings.timelimit.set(limit)
    settings.mip.tolerances.mipgap.set(GAP)
    settings.mip.tolerances.absmipgap.set(0.0)
    settings.mip.tolerances.integrality.set(0.0)
    settings.simplex.tolerances.feasibility.set(FEASIBILITY)
    solver.variables.add(
        obj=np.concatenate(program.objective).tolist(),
        lb=[0.0] * program.count,
        ub=[1.0] * program.count,
        types="".join("B" if b else "C" for b in program.binary),
    )
    expressions = [[c.tolist(), v.tolist()] for c, v in zip(rows.columns, rows.values, strict=True)]
    senses, sides = [], []
    for low, high in zip(rows.low, rows.high, strict=True):
        equal = low == high
        senses.append("E" if equal else "L" if high < INFINITY else "G")
        sides.append(high if high < INFINITY else low)
    solver.linear_constraints.add(lin_expr=expressions, senses="".join(senses), rhs=sides)
    products = [
        (int(x), int(y), float(c))
        for xs, ys, cs in program.products
        for x, y, c in zip(xs, ys, cs, strict=True)
    ]
    if products:
        solver.objective.set_quadratic_coefficients(products)
    start = time.perf_counter()
    try:
        solver.solve()
    except CplexSolverError as error:
        if error.args[2] == CPLEX_SIZE_LIMIT:
            return Found("rejected", note="above the size limit of the Community Edition"), 0.0
        raise
    seconds = time.perf_counter() - start
    answer = solver.solution
    kind = answer.get_status_string()
    if "infeasible" in kind:
        return Found("infeasible"), seconds
    if not answer.is_primal_feasible():
        return Found("unknown", note=kind), seconds
    name = "optimal" if kind.startswith("integer optimal") else "feasible"
    bound = answer.MIP.get_best_objective()
    return Found(name, bound, np.array(answer.get_values())), seconds


def resident_bytes() -> int:
    """Resident bytes now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """Reads, solves and prints."""
    name, form, file, limit = sys.argv[1:5]
    data = json.loads(Path(file).read_text())
    start = time.perf_counter()
    program = Program(read(data), form)
    build = time.perf_counter() - start
    resident = resident_bytes()
    solve = {"highs": highs, "cplex": cplex}[name]
    times: list[float] = []
    while True:
        found, seconds = solve(program, float(limit))
        times.append(seconds)
        if len(times) >= MOST_RUNS or sum(times) >= ENOUGH_SECONDS or found.status == "rejected":
            break
    objective, hosts = None, 0
    if found.solution is not None:
        paths = program.paths(found.solution)
        objective = program.value(paths)
        hosts = len({int(n) for path in paths for n in path})
        if not program.fits(paths):
            # Below the possible optimum: it violates links that this form leaves out.
            found.status, found.note = "unknown", "breaks a limit that this form leaves out"
            found.bound, objective = (found.bound or objective), None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(
        json.dumps(
            {
                "status": found.status,
                "objective": objective,
                "bound": found.bound,
                "solveSeconds": statistics.median(times),
                "buildSeconds": build,
                "columns": program.count,
                "residentBytes": resident,
                "peakBytes": peak,
                "hosts": hosts,
                "note": found.note,
            }
        )
    )


if __name__ == "__main__":
    main()
