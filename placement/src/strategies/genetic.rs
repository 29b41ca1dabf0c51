//! `genetic`: the genetic algorithm of the paper (Reisinger, Frangoudis and
//! Dustdar, IC2E 2021; operators and parameters of its code, addnn): uniform
//! crossover, uniform mutation, tournaments, elitism, repair of impossible
//! crossings, a penalty for overdrawn limits, an end after generations without
//! progress.
//!
//! `preset: tuned` starts from whole models and single splits besides random
//! ones, moves whole stretches when it mutates, and is more patient. Single
//! parameters change either preset. The same seed gives the same answer.

use super::parameters::Reader;
use super::rows;
use super::turns::{Effort, feasible, not_applicable};
use crate::dense::{Dense, Rows};
use crate::limits::{Ctx, SolveOptions};
use crate::problem::Problem;
use crate::random::Dice;
use crate::solution::Answer;
use crate::strategy::{Parameters, SolveError, Strategy};
use crate::validate::ValidProblem;

/// Most link entries over all choices of thresholds, for memory.
const MAX_ENTRIES: usize = 20_000_000;
/// Penalty for a limit overdrawn by its whole size, in mean costs.
const PENALTY: f64 = 10.0;

#[derive(Debug, Clone, Copy)]
struct Genetic {
    tuned: bool,
    population: usize,
    generations: usize,
    crossover: f64,
    mutation: f64,
    gene_swap: f64,
    gene_change: f64,
    tournament: usize,
    elite: f64,
    patience: usize,
}

impl Genetic {
    /// The published parameters.
    const PAPER: Self = Self {
        tuned: false,
        population: 1000,
        generations: 250,
        crossover: 0.8,
        mutation: 0.02,
        gene_swap: 0.5,
        gene_change: 0.5,
        tournament: 3,
        elite: 0.2,
        patience: 10,
    };
    /// Better values for our problems.
    const TUNED: Self = Self {
        tuned: true,
        population: 300,
        generations: 400,
        mutation: 0.4,
        elite: 0.1,
        patience: 40,
        ..Self::PAPER
    };
}

pub(super) fn make(parameters: &Parameters) -> Result<Box<dyn Strategy>, SolveError> {
    let mut reader = Reader::new("genetic", parameters);
    let preset = match reader.word("preset", &["paper", "tuned"])? {
        "tuned" => Genetic::TUNED,
        _ => Genetic::PAPER,
    };
    let share = 0.0..=1.0;
    let genetic = Genetic {
        population: reader
            .whole("population", 2..=100_000)?
            .unwrap_or(preset.population),
        generations: reader
            .whole("generations", 1..=100_000)?
            .unwrap_or(preset.generations),
        crossover: reader
            .number("crossover", share.clone())?
            .unwrap_or(preset.crossover),
        mutation: reader
            .number("mutation", share.clone())?
            .unwrap_or(preset.mutation),
        tournament: reader
            .whole("tournament", 1..=1000)?
            .unwrap_or(preset.tournament),
        elite: reader.number("elite", share)?.unwrap_or(preset.elite),
        patience: reader
            .whole("patience", 1..=100_000)?
            .unwrap_or(preset.patience),
        ..preset
    };
    reader.finish()?;
    Ok(Box::new(genetic))
}

impl Strategy for Genetic {
    fn name(&self) -> &str {
        "genetic"
    }

    fn solve(
        &self,
        problem: &ValidProblem<'_>,
        options: &SolveOptions,
        ctx: &Ctx,
    ) -> Result<Answer, SolveError> {
        let choices = rows::choices(problem, self.name())?;
        let n = problem.nodes.len();
        if choices.len().saturating_mul(n * n) > MAX_ENTRIES {
            return Err(not_applicable(
                self.name(),
                format!(
                    "{} choices of thresholds over {n} nodes are too many",
                    choices.len()
                ),
            ));
        }
        let mut effort = Effort::new(options, ctx);
        let mut evolution = Evolution::new(self, problem, &choices, options.seed);
        let best = evolution.run(&mut effort);
        Ok(feasible(best, effort.stats("generations", problem)))
    }
}

/// One placement of everything.
#[derive(Debug, Clone)]
struct Genome {
    /// Node per block, all workloads one after the other.
    nodes: Vec<usize>,
    /// Choice of thresholds.
    choice: usize,
    /// Objective with penalties; infinite if impossible.
    fitness: f64,
    /// Objective, if every limit is respected.
    value: Option<f64>,
}

struct Evolution<'a> {
    how: &'a Genetic,
    problem: &'a Problem,
    choices: &'a [Vec<Rows>],
    worlds: Vec<Dense>,
    /// Nodes that can run each block.
    able: Vec<Vec<usize>>,
    dice: Dice,
    penalty: f64,
}

impl<'a> Evolution<'a> {
    fn new(how: &'a Genetic, problem: &'a Problem, choices: &'a [Vec<Rows>], seed: u64) -> Self {
        let worlds: Vec<Dense> = choices
            .iter()
            .map(|rows| Dense::new(problem, rows))
            .collect();
        let mut able = Vec::new();
        for chain in worlds.first().iter().flat_map(|w| &w.chains) {
            for row in chain.cost.chunks(problem.nodes.len()) {
                let possible = (0..row.len()).filter(|i| row[*i] < f64::INFINITY);
                able.push(possible.collect::<Vec<usize>>());
            }
        }
        Self {
            how,
            problem,
            choices,
            worlds,
            able,
            dice: Dice::new(seed),
            penalty: 0.0,
        }
    }

    fn run(&mut self, effort: &mut Effort<'_>) -> Option<(f64, Vec<crate::Placement>)> {
        if self.worlds.is_empty() || self.able.iter().any(Vec::is_empty) {
            return None;
        }
        let mut population = self.first_generation(effort);
        let mut best: Option<Genome> = None;
        let (mut stale, mut last) = (0, f64::INFINITY);
        for _ in 0..self.how.generations {
            population.sort_by(|a, b| a.fitness.total_cmp(&b.fitness));
            let valid = population.iter().filter(|g| g.value.is_some());
            if let Some(fittest) = valid.min_by(|a, b| better(a, b))
                && best.as_ref().is_none_or(|b| better(fittest, b).is_lt())
            {
                best = Some(fittest.clone());
            }
            let fitness = population[0].fitness;
            stale = if fitness < last { 0 } else { stale + 1 };
            last = last.min(fitness);
            if stale > self.how.patience || effort.is_over() {
                break;
            }
            population = self.next_generation(&population, effort);
        }
        let valid = population.into_iter().filter(|g| g.value.is_some());
        let best = valid.chain(best).min_by(better)?;
        let rows = &self.choices[best.choice];
        let placements = self.worlds[best.choice].placements(self.problem, rows, &best.nodes);
        Some((best.value?, placements))
    }

    fn first_generation(&mut self, effort: &mut Effort<'_>) -> Vec<Genome> {
        let mut first = if self.how.tuned {
            self.plain_genomes()
        } else {
            Vec::new()
        };
        first.truncate(self.how.population / 2);
        while first.len() < self.how.population {
            let genome = self.random();
            first.push(genome);
        }
        for genome in &mut first {
            self.repair(genome);
        }
        // The penalty is in the unit of the first ones' costs.
        let costs: Vec<f64> = first
            .iter()
            .filter_map(|g| {
                let world = &self.worlds[g.choice];
                world.assess(&g.nodes).map(|a| world.weigh(&a))
            })
            .collect();
        let mean = costs.iter().sum::<f64>() / costs.len().max(1) as f64;
        self.penalty = PENALTY * if mean > 0.0 { mean } else { 1.0 };
        for genome in &mut first {
            self.judge(genome, effort);
        }
        first
    }

    /// Whole models and single splits, the same for every choice.
    fn plain_genomes(&mut self) -> Vec<Genome> {
        let total = self.able.len();
        let mut plain = Vec::new();
        let world = &self.worlds[0];
        let entries: Vec<usize> = world
            .chains
            .iter()
            .flat_map(|c| std::iter::repeat_n(c.entry, c.l))
            .collect();
        for _ in 0..self.how.population / 2 {
            let host = self.dice.below(self.problem.nodes.len());
            let cut = self.dice.below(total + 1);
            let nodes = (0..total).map(|b| if b < cut { entries[b] } else { host });
            let mut genome = self.genome(nodes.collect());
            for b in 0..total {
                if !self.able[b].contains(&genome.nodes[b]) {
                    genome.nodes[b] = self.any_node(b);
                }
            }
            plain.push(genome);
        }
        plain
    }

    fn genome(&mut self, nodes: Vec<usize>) -> Genome {
        Genome {
            nodes,
            choice: self.dice.below(self.choices.len()),
            fitness: f64::INFINITY,
            value: None,
        }
    }

    fn any_node(&mut self, block: usize) -> usize {
        let pick = self.dice.below(self.able[block].len());
        self.able[block][pick]
    }

    fn random(&mut self) -> Genome {
        let nodes = (0..self.able.len()).map(|b| self.any_node(b)).collect();
        self.genome(nodes)
    }

    /// A block that cannot be reached goes to the previous block's node.
    fn repair(&self, genome: &mut Genome) {
        let world = &self.worlds[genome.choice];
        let mut offset = 0;
        for chain in &world.chains {
            let mut at = chain.entry;
            for b in 0..chain.l {
                let node = &mut genome.nodes[offset + b];
                let stays = chain.cost[b * world.n + at] < f64::INFINITY;
                if stays && world.crossing(chain, b, at, *node) == f64::INFINITY {
                    *node = at;
                }
                at = *node;
            }
            offset += chain.l;
        }
    }

    fn judge(&self, genome: &mut Genome, effort: &mut Effort<'_>) {
        effort.spend();
        let world = &self.worlds[genome.choice];
        (genome.fitness, genome.value) = match world.assess(&genome.nodes) {
            None => (f64::INFINITY, None),
            Some(a) => {
                let value = world.weigh(&a);
                let valid = a.excess == 0.0;
                (value + self.penalty * a.excess, valid.then_some(value))
            }
        };
    }

    /// `population` is sorted, the fittest first.
    fn next_generation(&mut self, population: &[Genome], effort: &mut Effort<'_>) -> Vec<Genome> {
        let elite = (self.how.elite * population.len() as f64) as usize;
        let mut next = population[..elite.max(1)].to_vec();
        while next.len() < population.len() && !effort.is_over() {
            let mut pair = [self.winner(population), self.winner(population)];
            if self.dice.chance(self.how.crossover) {
                let [a, b] = &mut pair;
                self.cross(a, b);
            }
            for mut child in pair {
                if self.dice.chance(self.how.mutation) {
                    self.mutate(&mut child);
                }
                self.repair(&mut child);
                self.judge(&mut child, effort);
                next.push(child);
            }
        }
        next.truncate(population.len());
        next
    }

    /// The fittest of a few drawn at random: of sorted ones, the first.
    fn winner(&mut self, population: &[Genome]) -> Genome {
        let drawn = (0..self.how.tournament).map(|_| self.dice.below(population.len()));
        population[drawn.min().unwrap_or_default()].clone()
    }

    fn cross(&mut self, a: &mut Genome, b: &mut Genome) {
        for (x, y) in a.nodes.iter_mut().zip(&mut b.nodes) {
            if self.dice.chance(self.how.gene_swap) {
                std::mem::swap(x, y);
            }
        }
        if self.dice.chance(self.how.gene_swap) {
            std::mem::swap(&mut a.choice, &mut b.choice);
        }
    }

    fn mutate(&mut self, genome: &mut Genome) {
        if self.how.tuned && self.dice.chance(0.5) {
            self.move_stretch(genome);
        } else {
            for b in 0..genome.nodes.len() {
                if self.dice.chance(self.how.gene_change) {
                    genome.nodes[b] = self.any_node(b);
                }
            }
        }
        if self.choices.len() > 1 && self.dice.chance(self.how.gene_change) {
            genome.choice = self.dice.below(self.choices.len());
        }
    }

    /// Moves a stretch of blocks to one node.
    fn move_stretch(&mut self, genome: &mut Genome) {
        let first = self.dice.below(genome.nodes.len());
        let last = first + self.dice.below(genome.nodes.len() - first);
        let to = self.any_node(first);
        for b in first..=last {
            if self.able[b].contains(&to) {
                genome.nodes[b] = to;
            }
        }
    }
}

fn better(a: &Genome, b: &Genome) -> std::cmp::Ordering {
    let value = |g: &Genome| g.value.unwrap_or(f64::INFINITY);
    value(a).total_cmp(&value(b))
}
