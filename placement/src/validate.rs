//! Finds every contradiction in a problem at once, each with its field.

use crate::objective::Objective;
use crate::problem::{Exit, Problem, Workload};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Most nodes: the links of more would not fit in memory.
pub const MAX_NODES: usize = 2048;
/// Most blocks in one workload.
pub const MAX_BLOCKS: usize = 4096;
/// Most combinations of thresholds.
pub(crate) const MAX_THRESHOLD_COMBINATIONS: usize = 4096;

/// An invalid field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field, `workloads[cam].blocks[3].costs[edge-1].seconds`.
    pub field: String,
    /// The mistake and what would be right.
    pub reason: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// Every field that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldErrors(pub Vec<FieldError>);

impl fmt::Display for FieldErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for FieldErrors {}

/// A problem that passed [`validate`]: strategies get only these, so that none of them meets a
/// contradiction.
#[derive(Debug, Clone, Copy)]
pub struct ValidProblem<'a>(&'a Problem);

impl<'a> ValidProblem<'a> {
    /// Validates.
    ///
    /// # Errors
    /// As [`validate`].
    pub fn new(problem: &'a Problem) -> Result<Self, FieldErrors> {
        validate(problem).map(|()| Self(problem))
    }
}

impl std::ops::Deref for ValidProblem<'_> {
    type Target = Problem;

    fn deref(&self) -> &Problem {
        self.0
    }
}

/// Checks everything that the strategies and the checker rely on.
///
/// # Errors
/// All contradictions found, in the problem's order.
pub fn validate(problem: &Problem) -> Result<(), FieldErrors> {
    let mut found = Found::default();
    if problem.nodes.len() > MAX_NODES {
        found.add(
            "nodes",
            format!("{} nodes, at most {MAX_NODES}", problem.nodes.len()),
        );
        return Err(FieldErrors(found.0));
    }
    let names = nodes(problem, &mut found);
    links(problem, &names, &mut found);
    objective(&problem.objective, &mut found);
    if problem.workloads.is_empty() {
        found.add("workloads", "is empty; give at least one".into());
    }
    let mut seen = BTreeSet::new();
    for (i, workload) in problem.workloads.iter().enumerate() {
        if workload.name.is_empty() || !seen.insert(workload.name.as_str()) {
            found.add(
                &format!("workloads[{i}].name"),
                "must be unique and not empty".into(),
            );
        }
        check_workload(problem, workload, &names, &mut found);
    }
    if found.0.is_empty() {
        Ok(())
    } else {
        Err(FieldErrors(found.0))
    }
}

#[derive(Default)]
struct Found(Vec<FieldError>);

impl Found {
    fn add(&mut self, field: &str, reason: String) {
        self.0.push(FieldError {
            field: field.to_owned(),
            reason,
        });
    }

    fn at_least_zero(&mut self, field: impl FnOnce() -> String, value: f64) {
        if !(value.is_finite() && value >= 0.0) {
            self.add(
                &field(),
                format!("{value} is not a number of at least zero"),
            );
        }
    }

    fn share(&mut self, field: impl FnOnce() -> String, value: f64) {
        if !(value > 0.0 && value <= 1.0) {
            self.add(&field(), format!("{value} is not above 0 and at most 1"));
        }
    }

    fn probability(&mut self, field: impl FnOnce() -> String, value: f64) {
        if !(0.0..=1.0).contains(&value) {
            self.add(&field(), format!("{value} is not in 0..=1"));
        }
    }

    fn node(&mut self, names: &BTreeSet<&str>, field: impl FnOnce() -> String, name: &str) {
        if !names.contains(name) {
            self.add(&field(), format!("unknown node `{name}`"));
        }
    }
}

fn nodes<'a>(problem: &'a Problem, found: &mut Found) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    if problem.nodes.is_empty() {
        found.add("nodes", "is empty; give at least one".into());
    }
    for (i, node) in problem.nodes.iter().enumerate() {
        let at = |field: &str| format!("nodes[{}].{field}", node.name);
        if node.name.is_empty() || !names.insert(node.name.as_str()) {
            found.add(
                &format!("nodes[{i}].name"),
                "must be unique and not empty".into(),
            );
        }
        found.at_least_zero(|| at("loadShare"), node.load_share);
        if node.load_share >= 1.0 {
            found.add(&at("loadShare"), "must be below 1".into());
        }
        found.share(|| at("utilisationCap"), node.utilisation_cap);
        found.at_least_zero(|| at("activeWatts"), node.active_watts);
        found.at_least_zero(|| at("pricePerSecond"), node.price_per_second);
        if node.concurrency == 0 {
            found.add(&at("concurrency"), "must be at least 1".into());
        }
    }
    names
}

fn links(problem: &Problem, names: &BTreeSet<&str>, found: &mut Found) {
    for (from, row) in &problem.links {
        found.node(names, || format!("links[{from}]"), from);
        // Both are sorted: a merge is much faster than a look-up per link.
        let mut known = names.iter().peekable();
        for (to, link) in row {
            let at = |field: &str| format!("links[{from}][{to}]{field}");
            while known.next_if(|n| **n < to.as_str()).is_some() {}
            if known.peek().is_none_or(|n| **n != to.as_str()) {
                found.add(&at(""), format!("unknown node `{to}`"));
            }
            if from == to {
                found.add(&at(""), "a node has no link to itself; leave it out".into());
            }
            found.at_least_zero(|| at(".latencySeconds"), link.latency_seconds);
            if !(link.bytes_per_second.is_finite() && link.bytes_per_second > 0.0) {
                found.add(
                    &at(".bytesPerSecond"),
                    format!(
                        "{} is not above zero; leave an unreachable link out",
                        link.bytes_per_second
                    ),
                );
            }
            found.share(|| at(".share"), link.share);
            found.at_least_zero(|| at(".joulesPerByte"), link.joules_per_byte);
            found.at_least_zero(|| at(".pricePerByte"), link.price_per_byte);
        }
    }
}

fn objective(objective: &Objective, found: &mut Found) {
    let criteria = objective.criteria();
    if criteria.is_empty() {
        found.add("objective", "is empty; give at least one criterion".into());
    }
    let mut seen = BTreeSet::new();
    for criterion in &criteria {
        if !seen.insert(criterion) {
            found.add("objective", format!("has {criterion} twice"));
        }
    }
    match objective {
        Objective::Weighted(terms) => {
            for (i, term) in terms.iter().enumerate() {
                let field = || format!("objective.weighted[{i}].weight");
                found.at_least_zero(field, term.weight);
            }
            if criteria.iter().filter(|c| c.is_worst()).count() > 1 {
                found.add(
                    "objective.weighted",
                    "may hold one of throughput and the two fairnesses, not several".into(),
                );
            }
        }
        Objective::Lexicographic(ranks) => {
            for (i, rank) in ranks.iter().enumerate() {
                let field = || format!("objective.lexicographic[{i}].tolerance");
                found.at_least_zero(field, rank.tolerance);
            }
        }
        _ => {}
    }
}

fn check_workload(
    problem: &Problem,
    workload: &Workload,
    names: &BTreeSet<&str>,
    found: &mut Found,
) {
    let at = |field: &str| format!("workloads[{}].{field}", workload.name);
    found.node(names, || at("entry"), &workload.entry);
    found.at_least_zero(|| at("ratePerSecond"), workload.rate_per_second);
    found.at_least_zero(|| at("weight"), workload.weight);
    if workload.blocks.is_empty() {
        found.add(&at("blocks"), "is empty; give at least one".into());
    }
    if workload.blocks.len() > MAX_BLOCKS {
        found.add(
            &at("blocks"),
            format!("{} blocks, at most {MAX_BLOCKS}", workload.blocks.len()),
        );
        return;
    }
    values(workload, found);
    for (b, block) in workload.blocks.iter().enumerate() {
        for (node, cost) in &block.costs {
            let field = |f: &str| at(&format!("blocks[{b}].costs[{node}]{f}"));
            found.node(names, || field(""), node);
            found.at_least_zero(|| field(".seconds"), cost.seconds);
            found.at_least_zero(|| field(".cutPenaltySeconds"), cost.cut_penalty_seconds);
        }
    }
    exits(workload, found);
    constraints(problem, workload, names, found);
    if let Some(previous) = &workload.previous {
        found.at_least_zero(
            || at("previous.moveSecondsPerByte"),
            previous.move_seconds_per_byte,
        );
        let held = previous.segments.iter().flat_map(|s| &s.blocks);
        if let Some(b) = held.into_iter().find(|b| **b >= workload.blocks.len()) {
            found.add(&at("previous.segments"), format!("there is no block {b}"));
        }
        let on_disk = previous.on_disk.iter().flat_map(|s| &s.blocks);
        if let Some(b) = on_disk.into_iter().find(|b| **b >= workload.blocks.len()) {
            found.add(&at("previous.onDisk"), format!("there is no block {b}"));
        }
    }
}

fn values(workload: &Workload, found: &mut Found) {
    let at = |field: &str| format!("workloads[{}].{field}", workload.name);
    let mut known = BTreeSet::new();
    for (i, value) in workload.values.iter().enumerate() {
        if value.name.is_empty() || !known.insert(value.name.as_str()) {
            found.add(
                &at(&format!("values[{i}].name")),
                "must be unique and not empty".into(),
            );
        }
    }
    let mut giver: BTreeMap<&str, usize> = BTreeMap::new();
    for (b, block) in workload.blocks.iter().enumerate() {
        for name in &block.outputs {
            let field = || at(&format!("blocks[{b}].outputs"));
            if !known.contains(name.as_str()) {
                found.add(&field(), format!("unknown value `{name}`"));
            } else {
                let first = *giver.entry(name).or_insert(b);
                if first != b {
                    found.add(&field(), format!("block {first} already gives `{name}`"));
                }
            }
        }
    }
    for (b, block) in workload.blocks.iter().enumerate() {
        for name in &block.inputs {
            let field = || at(&format!("blocks[{b}].inputs"));
            if !known.contains(name.as_str()) {
                found.add(&field(), format!("unknown value `{name}`"));
            } else if giver.get(name.as_str()).is_some_and(|g| *g >= b) {
                found.add(&field(), format!("no block before it gives `{name}`"));
            }
        }
    }
    for name in &workload.outputs {
        if !known.contains(name.as_str()) {
            found.add(&at("outputs"), format!("unknown value `{name}`"));
        }
    }
}

fn exits(workload: &Workload, found: &mut Found) {
    let at = |field: &str| format!("workloads[{}].{field}", workload.name);
    let mut before: Option<&Exit> = None;
    let mut combinations = 1usize;
    for (e, exit) in workload.exits.iter().enumerate() {
        let field = |f: &str| at(&format!("exits[{e}].{f}"));
        if exit.after_block + 1 >= workload.blocks.len() {
            found.add(
                &field("afterBlock"),
                "must be a block before the last".into(),
            );
        }
        if before.is_some_and(|p| p.after_block >= exit.after_block) {
            found.add(
                &field("afterBlock"),
                "must be behind the exit before it".into(),
            );
        }
        if exit.table.is_empty() {
            found.add(&field("table"), "is empty; give at least one row".into());
        }
        combinations = combinations.saturating_mul(exit.table.len().max(1));
        for (r, row) in exit.table.iter().enumerate() {
            let cell = |f: &str| field(&format!("table[{r}].{f}"));
            if !row.threshold.is_finite() {
                found.add(&cell("threshold"), "is not a number".into());
            }
            if exit.table[..r].iter().any(|q| q.threshold == row.threshold) {
                found.add(&cell("threshold"), "is there twice".into());
            }
            found.probability(|| cell("rate"), row.rate);
            found.probability(|| cell("accuracy"), row.accuracy);
        }
        before = Some(exit);
    }
    if combinations > MAX_THRESHOLD_COMBINATIONS {
        found.add(
            &at("exits"),
            format!(
                "{combinations} combinations of thresholds, at most {MAX_THRESHOLD_COMBINATIONS}"
            ),
        );
    }
    let limit = workload.constraints.min_accuracy;
    if combinations > 1 && limit.is_none() {
        found.add(
            &at("constraints.minAccuracy"),
            "is needed where thresholds can be chosen".into(),
        );
    }
    if limit.is_some() && workload.final_accuracy.is_none() {
        found.add(
            &at("finalAccuracy"),
            "is needed together with minAccuracy".into(),
        );
    }
    for (name, value) in [
        ("constraints.minAccuracy", limit),
        ("finalAccuracy", workload.final_accuracy),
    ] {
        if let Some(value) = value {
            found.probability(|| at(name), value);
        }
    }
}

fn constraints(problem: &Problem, workload: &Workload, names: &BTreeSet<&str>, found: &mut Found) {
    let at = |field: &str| format!("workloads[{}].constraints.{field}", workload.name);
    let c = &workload.constraints;
    let blocks = workload.blocks.len();
    for (field, list) in [("pins", &c.pins), ("forbidden", &c.forbidden)] {
        for (i, item) in list.iter().enumerate() {
            let field = || at(&format!("{field}[{i}]"));
            found.node(names, field, &item.node);
            if item.block >= blocks {
                found.add(&field(), format!("there is no block {}", item.block));
            }
        }
    }
    for node in c.node_slice_limit_bytes.keys() {
        found.node(names, || at(&format!("nodeSliceLimitBytes[{node}]")), node);
    }
    if c.keep_first_on_entry > blocks {
        found.add(
            &at("keepFirstOnEntry"),
            format!(
                "keeps {} blocks, the model has {blocks}",
                c.keep_first_on_entry
            ),
        );
    }
    if c.allowed_tiers.as_ref().is_some_and(BTreeSet::is_empty) {
        found.add(
            &at("allowedTiers"),
            "is empty; leave it out to allow all".into(),
        );
    }
    if let Some(limit) = c.latency_limit_seconds {
        found.at_least_zero(|| at("latencyLimitSeconds"), limit);
    }
    contradictions(problem, workload, found);
}

/// Blocks that must run where they must not.
fn contradictions(problem: &Problem, workload: &Workload, found: &mut Found) {
    let at = |field: &str| format!("workloads[{}].constraints.{field}", workload.name);
    let c = &workload.constraints;
    let kept = (0..c.keep_first_on_entry.min(workload.blocks.len())).map(|block| {
        (
            "keepFirstOnEntry".to_owned(),
            block,
            workload.entry.as_str(),
        )
    });
    let pinned = c
        .pins
        .iter()
        .enumerate()
        .map(|(i, p)| (format!("pins[{i}]"), p.block, p.node.as_str()));
    let mut wanted: BTreeMap<usize, &str> = BTreeMap::new();
    let mut told_tier = BTreeSet::new();
    for (field, block, node) in kept.chain(pinned) {
        match wanted.insert(block, node) {
            Some(other) if other != node => found.add(
                &at(&field),
                format!("block {block} must run on `{node}` and on `{other}`"),
            ),
            _ => {}
        }
        if c.forbidden
            .iter()
            .any(|f| f.block == block && f.node == node)
        {
            found.add(
                &at(&field),
                format!("block {block} must run on `{node}` and is forbidden there"),
            );
        }
        let tier = problem
            .nodes
            .iter()
            .find(|n| n.name == node)
            .map(|n| n.tier);
        if let (Some(tier), Some(allowed)) = (tier, &c.allowed_tiers)
            && !allowed.contains(&tier)
            && told_tier.insert((field.clone(), node))
        {
            found.add(
                &at(&field),
                format!("`{node}` is of tier {tier}, which is not among the allowed"),
            );
        }
    }
}

#[cfg(test)]
mod tests;
