//! The placement as a mixed-integer program on flows, solved by microlp.
//!
//! A binary variable per block and node says where the block runs; a variable
//! per cut and pair of nodes carries the flow from one block to the next. Without
//! capacities this is a network matrix, whose relaxation is already integral.

use crate::dense::{COMPUTE, Chain, Dense, KINDS, SLICES};
use crate::limits::Ctx;
use microlp::{
    ComparisonOp, Error, OptimizationDirection, Solution, SolveOptions, SolveOutcome,
    TerminationReason, Variable,
};
use std::collections::BTreeMap;
use std::time::Duration;

/// More columns than this are not worth the memory.
pub(crate) const MAX_COLUMNS: usize = 400_000;
/// Time that the solver runs between checks of the limits.
const SLICE: Duration = Duration::from_millis(200);
/// Most placements cut off because only rounding made them feasible.
const MAX_CUTS: usize = 50;

/// Largest distance of a binary variable from an integer: far less than would show in the
/// objective.
const INTEGRALITY: f64 = 1e-9;

/// What is minimized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Sum of costs.
    Cost,
    /// Load of the busiest node or link, relative to its limit.
    Busiest,
}

/// The result.
#[derive(Debug, Clone)]
pub(crate) struct MilpOutcome {
    /// A node per block, all chains one after the other.
    pub path: Option<Vec<usize>>,
    /// No placement is better than this; not finite if nothing was proved, infinite if there is no
    /// placement.
    pub bound: f64,
    /// Whether the solver finished.
    pub complete: bool,
    /// Branch-and-bound nodes.
    pub nodes: u64,
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MilpError {
    /// Too large.
    #[error("the program would have {0} columns, at most {MAX_COLUMNS}")]
    TooLarge(usize),
    /// The solver failed.
    #[error("the solver failed: {0}")]
    Solver(String),
}

/// Solves `dense` to optimality or to the limits. Placements that are not
/// cheaper than `cutoff` are not wanted.
pub(crate) fn solve(
    dense: &Dense,
    goal: Goal,
    cutoff: f64,
    max_nodes: u64,
    ctx: &Ctx,
) -> Result<MilpOutcome, MilpError> {
    let size: usize = dense.chains.iter().map(|c| columns(dense, c)).sum();
    if size > MAX_COLUMNS {
        return Err(MilpError::TooLarge(size));
    }
    let Some(mut program) = Program::new(dense, goal, cutoff) else {
        return Ok(MilpOutcome {
            path: None,
            bound: f64::INFINITY,
            complete: true,
            nodes: 0,
        });
    };
    let mut nodes = 0;
    for _ in 0..MAX_CUTS {
        let solved = run(&program.problem, max_nodes.saturating_sub(nodes), ctx);
        let solved = match solved {
            Ok(solved) => solved,
            Err(Error::Infeasible) => {
                return Ok(outcome(None, f64::INFINITY, true, nodes));
            }
            Err(e) => return Err(MilpError::Solver(e.to_string())),
        };
        nodes += solved.stats().nodes_solved;
        let bound = solved
            .stats()
            .best_bound
            .map_or(f64::NEG_INFINITY, |b| b * program.scale);
        let complete = solved.is_optimal();
        let Some(solution) = solved.solution() else {
            return Ok(outcome(None, bound, false, nodes));
        };
        let path = program.path(solution);
        if dense.evaluate(&path).is_some() {
            return Ok(outcome(Some(path), bound, complete, nodes));
        }
        if !complete {
            return Ok(outcome(None, bound, false, nodes));
        }
        program.cut_off(&path);
    }
    Ok(outcome(None, f64::NEG_INFINITY, false, nodes))
}

/// Runs in slices, so that a cancellation takes effect.
fn run(problem: &microlp::Problem, max_nodes: u64, ctx: &Ctx) -> Result<SolveOutcome, Error> {
    let slice = || Some(ctx.remaining().map_or(SLICE, |left| left.min(SLICE)));
    let mut options = SolveOptions::default();
    options.time_limit = slice();
    options.node_limit = Some(max_nodes.max(1));
    options.int_tol = INTEGRALITY;
    let mut outcome = problem.solve_with(options)?;
    while outcome.termination_reason() == TerminationReason::TimeLimit && !ctx.expired() {
        let mut options = outcome.last_resume_options();
        options.time_limit = slice();
        options.node_limit = Some(
            max_nodes
                .saturating_sub(outcome.stats().nodes_solved)
                .max(1),
        );
        outcome = outcome.resume_with(options)?;
    }
    Ok(outcome)
}

fn columns(dense: &Dense, chain: &Chain) -> usize {
    let alive: Vec<usize> = (0..chain.l)
        .map(|b| {
            (0..dense.n)
                .filter(|i| chain.cost[b * dense.n + i] < f64::INFINITY)
                .count()
        })
        .collect();
    let flows: usize = alive.windows(2).map(|w| w[0] * w[1]).sum();
    alive.iter().sum::<usize>() + flows
}

type Row = Vec<(Variable, f64)>;

/// The program and the meaning of its columns.
struct Program<'a> {
    dense: &'a Dense,
    problem: microlp::Problem,
    /// `[block over all chains][node]`.
    place: Vec<Option<Variable>>,
    /// Divisor of objective values.
    scale: f64,
    /// Rows `terms <= 1` (or `<= busiest`), terms as shares of the capacity.
    node_rows: BTreeMap<(usize, usize, usize), Row>,
    link_rows: BTreeMap<usize, Row>,
    /// `[budget][chain]`.
    budget_rows: Vec<Vec<Row>>,
    cost_row: Row,
    goal: Goal,
}

impl<'a> Program<'a> {
    /// `None` if some block has nowhere to run.
    fn new(dense: &'a Dense, goal: Goal, cutoff: f64) -> Option<Self> {
        let scale = match goal {
            Goal::Cost => largest_cost(dense).max(1e-12),
            Goal::Busiest => 1.0,
        };
        let mut program = Self {
            dense,
            problem: microlp::Problem::new(OptimizationDirection::Minimize),
            place: Vec::new(),
            scale,
            node_rows: BTreeMap::new(),
            link_rows: BTreeMap::new(),
            budget_rows: vec![vec![Row::new(); dense.chains.len()]; dense.budgets.len()],
            cost_row: Vec::new(),
            goal,
        };
        for k in 0..dense.chains.len() {
            program.chain(k)?;
        }
        program.capacities();
        if goal == Goal::Cost && cutoff < f64::INFINITY {
            let row = std::mem::take(&mut program.cost_row);
            // Margin for the solver's tolerance: a tie may result, never a loss.
            let limit = cutoff / scale * (1.0 + 1e-6);
            program
                .problem
                .add_constraint(&row, ComparisonOp::Le, limit);
        }
        Some(program)
    }

    fn column(&mut self, cost: f64, binary: bool) -> Variable {
        let price = match self.goal {
            Goal::Cost => cost / self.scale,
            Goal::Busiest => 0.0,
        };
        let variable = if binary {
            self.problem.add_binary_var(price)
        } else {
            self.problem.add_var(price, (0.0, 1.0))
        };
        self.cost_row.push((variable, cost / self.scale));
        variable
    }

    /// Columns and flow rows of one chain.
    fn chain(&mut self, k: usize) -> Option<()> {
        let dense = self.dense;
        let (chain, n) = (&dense.chains[k], dense.n);
        let mut before: Vec<Option<Variable>> = Vec::new();
        for b in 0..chain.l {
            let mut here = vec![None; n];
            for (i, place) in here.iter_mut().enumerate() {
                let arrive = if b == 0 {
                    dense.crossing(chain, 0, chain.entry, i)
                } else {
                    0.0
                };
                let cost = chain.cost[b * n + i] + arrive;
                let alone = (0..KINDS).all(|kind| {
                    chain.need[kind].is_empty()
                        || chain.need[kind][b * n + i] <= dense.room(chain, kind, i)
                });
                if cost == f64::INFINITY || !alone {
                    continue;
                }
                let variable = self.column(cost, true);
                *place = Some(variable);
                self.block_terms(k, b, i, variable);
            }
            let one: Row = here.iter().flatten().map(|v| (*v, 1.0)).collect();
            if one.is_empty() {
                return None;
            }
            self.problem.add_constraint(&one, ComparisonOp::Eq, 1.0);
            if b > 0 {
                self.flow(k, b, &before, &here);
            }
            self.place.extend(&here);
            before = here;
        }
        Some(())
    }

    /// A block's need where it runs, and the crossing into the first.
    fn block_terms(&mut self, k: usize, b: usize, i: usize, variable: Variable) {
        let dense = self.dense;
        let (chain, n) = (&dense.chains[k], dense.n);
        for (kind, need) in chain.need.iter().enumerate() {
            if need.is_empty() {
                continue;
            }
            self.node_term(k, kind, i, need[b * n + i], variable);
        }
        if b == 0 && i != chain.entry {
            self.link_terms(k, 0, chain.entry, i, variable);
        }
        for (rows, budget) in self.budget_rows.iter_mut().zip(&dense.budgets) {
            let measure = &budget.measures[k];
            let mut charge = measure.cost[b * n + i];
            if b == 0 {
                charge += dense.toll(chain, &measure.toll, 0, chain.entry, i);
            }
            rows[k].push((variable, charge));
        }
    }

    fn node_term(&mut self, k: usize, kind: usize, i: usize, need: f64, variable: Variable) {
        if need <= 0.0 {
            return;
        }
        let chain = if kind == SLICES { k } else { 0 };
        let row = self.node_rows.entry((kind, chain, i)).or_default();
        row.push((variable, need));
    }

    fn link_terms(&mut self, k: usize, b: usize, from: usize, to: usize, variable: Variable) {
        let (dense, n) = (self.dense, self.dense.n);
        let chain = &dense.chains[k];
        let (at, turned) = (from * n + to, to * n + from);
        for (link, load) in [
            (at, chain.rate * chain.bytes[b] * dense.forth_load[at]),
            (turned, chain.rate * chain.reply[b] * dense.back_load[at]),
        ] {
            if load > 0.0 {
                self.link_rows
                    .entry(link)
                    .or_default()
                    .push((variable, load));
            }
        }
    }

    /// Flow over the cut before block `b`: outgoing flow equals presence before, incoming flow
    /// presence after.
    fn flow(&mut self, k: usize, b: usize, before: &[Option<Variable>], here: &[Option<Variable>]) {
        let dense = self.dense;
        let (chain, n) = (&dense.chains[k], dense.n);
        let mut arriving: Vec<Row> = vec![Vec::new(); n];
        for (i, from) in before.iter().enumerate() {
            let Some(from) = from else {
                continue;
            };
            let mut leaving: Row = vec![(*from, -1.0)];
            for (j, to) in here.iter().enumerate() {
                let cost = dense.crossing(chain, b, i, j);
                if to.is_none() || cost == f64::INFINITY {
                    continue;
                }
                let variable = self.column(cost, false);
                leaving.push((variable, 1.0));
                arriving[j].push((variable, 1.0));
                if i != j {
                    self.link_terms(k, b, i, j, variable);
                    for (rows, budget) in self.budget_rows.iter_mut().zip(&dense.budgets) {
                        let toll = &budget.measures[k].toll;
                        rows[k].push((variable, dense.toll(chain, toll, b, i, j)));
                    }
                    if !chain.cut_load.is_empty() {
                        let load = chain.cut_load[b * n + i];
                        self.node_term(k, COMPUTE, i, load, variable);
                    }
                }
            }
            self.problem.add_constraint(&leaving, ComparisonOp::Eq, 0.0);
        }
        for (to, mut row) in here.iter().zip(arriving) {
            if let Some(to) = to {
                row.push((*to, -1.0));
                self.problem.add_constraint(&row, ComparisonOp::Eq, 0.0);
            }
        }
    }

    /// Capacity rows, relative to their capacities.
    fn capacities(&mut self) {
        let dense = self.dense;
        let busiest =
            (self.goal == Goal::Busiest).then(|| self.problem.add_var(1.0, (0.0, f64::INFINITY)));
        for ((kind, k, i), row) in std::mem::take(&mut self.node_rows) {
            let capacity = dense.room(&dense.chains[k], kind, i);
            self.at_most(&row, capacity);
            if let Some(busiest) = busiest
                && kind == COMPUTE
            {
                let free = dense.free_compute[i];
                let mut shares: Row = row.iter().map(|(v, need)| (*v, need / free)).collect();
                shares.push((busiest, -1.0));
                self.problem.add_constraint(&shares, ComparisonOp::Le, 0.0);
            }
        }
        for (_, mut row) in std::mem::take(&mut self.link_rows) {
            self.at_most(&row, dense.link_capacity);
            if let Some(busiest) = busiest {
                row.push((busiest, -1.0));
                self.problem.add_constraint(&row, ComparisonOp::Le, 0.0);
            }
        }
        for (rows, budget) in std::mem::take(&mut self.budget_rows)
            .into_iter()
            .zip(&dense.budgets)
        {
            if budget.total {
                let limit = budget.limits.first().copied().unwrap_or(f64::INFINITY);
                self.at_most(&rows.concat(), limit);
                continue;
            }
            for (row, limit) in rows.iter().zip(&budget.limits) {
                self.at_most(row, *limit);
            }
        }
    }

    fn at_most(&mut self, row: &[(Variable, f64)], capacity: f64) {
        let most: f64 = row.iter().map(|(_, need)| need).sum();
        if capacity == f64::INFINITY || most <= capacity {
            return;
        }
        // Relative to the largest term, because a capacity may be zero.
        let unit = row.iter().map(|(_, need)| *need).fold(0.0, f64::max);
        let scaled: Row = row
            .iter()
            .filter(|(_, need)| *need > 0.0)
            .map(|(v, need)| (*v, need / unit))
            .collect();
        self.problem
            .add_constraint(&scaled, ComparisonOp::Le, capacity / unit);
    }

    fn path(&self, solution: &Solution) -> Vec<usize> {
        self.place
            .chunks(self.dense.n)
            .map(|row| {
                row.iter()
                    .position(|v| v.is_some_and(|v| solution.var_value(v) > 0.5))
                    .unwrap_or(0)
            })
            .collect()
    }

    /// Forbids one path that fits within the solver's tolerance but not exactly.
    fn cut_off(&mut self, path: &[usize]) {
        let n = self.dense.n;
        let row: Row = path
            .iter()
            .enumerate()
            .filter_map(|(b, i)| self.place[b * n + i])
            .map(|v| (v, 1.0))
            .collect();
        let most = row.len() as f64 - 1.0;
        self.problem.add_constraint(&row, ComparisonOp::Le, most);
    }
}

const fn outcome(path: Option<Vec<usize>>, bound: f64, complete: bool, nodes: u64) -> MilpOutcome {
    MilpOutcome {
        path,
        bound,
        complete,
        nodes,
    }
}

/// The largest finite cost of a block or of a crossing from the entry, which sets the unit.
fn largest_cost(dense: &Dense) -> f64 {
    let blocks = dense.chains.iter().flat_map(|c| c.cost.iter().copied());
    let crossings = dense.chains.iter().flat_map(|c| {
        let pairs = (0..c.l).flat_map(move |b| (0..dense.n).map(move |i| (b, i)));
        pairs.map(move |(b, i)| dense.crossing(c, b, c.entry, i))
    });
    let finite = blocks.chain(crossings).filter(|c| c.is_finite());
    finite.fold(0.0, f64::max)
}
