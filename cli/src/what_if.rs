//! `--what-if`: compares a changed problem with the current one.

use crate::report::{Change, Moved, Row, WhatIf};
use crate::units::{self, Kind, UnitError};
use lamina_placement::check::evaluate;
use lamina_placement::{Link, Placement, Problem};

/// Listed for an unknown key.
const KEYS: &str = "link.A:B.bandwidth, link.A:B.latency, link.A:B.gone (oneway. for A to B alone), node.N.memory, node.N.load, node.N.speed, node.N.gone or rate";

/// A change that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChangeError {
    /// An unknown key.
    #[error("unknown key `{0}`; it is one of {KEYS}")]
    Key(String),
    /// A value is missing.
    #[error("`{0}` has no value; write {0}=VALUE")]
    NoValue(String),
    /// A key that takes no value.
    #[error("`{0}` takes no value")]
    NeedsNone(String),
    /// There is no such node.
    #[error("there is no node `{0}`")]
    Node(String),
    /// There is no such link.
    #[error("there is no link from {0} to {1}")]
    Link(String, String),
    /// The entry cannot be removed.
    #[error("requests arrive at {0}, so it cannot be removed")]
    Entry(String),
    /// The value is not a quantity.
    #[error(transparent)]
    Unit(#[from] UnitError),
    /// The value is out of its range.
    #[error("{value} {reason}")]
    Range {
        /// As written.
        value: String,
        /// The reason.
        reason: &'static str,
    },
}

/// Changes one property of a link and returns it before and after.
type SetLink = dyn Fn(&mut Link) -> [f64; 2];

/// The new value of a quantity.
enum Target {
    Value(f64),
    Factor(f64),
}

impl Target {
    /// `50Mbit`, or a factor such as `0.5x`.
    fn parse(text: &str, kind: Kind) -> Result<Self, ChangeError> {
        let factor = text.strip_suffix('x').and_then(|t| t.parse().ok());
        let (value, target) = match factor {
            Some(factor) => (factor, Self::Factor(factor)),
            None => {
                let value = units::parse(text, kind)?;
                (value, Self::Value(value))
            }
        };
        if value.is_finite() && value >= 0.0 {
            Ok(target)
        } else {
            Err(out_of_range(text, "is not a number of at least zero"))
        }
    }

    fn of(&self, before: f64) -> f64 {
        match self {
            Self::Value(value) => *value,
            Self::Factor(factor) => before * factor,
        }
    }
}

fn out_of_range(value: &str, reason: &'static str) -> ChangeError {
    ChangeError::Range {
        value: value.to_owned(),
        reason,
    }
}

/// Makes one change, such as `link.edge-1:cloud-1.bandwidth=5Mbit`.
///
/// # Errors
/// [`ChangeError`]; the problem is unchanged then.
pub(crate) fn apply(problem: &mut Problem, change: &str) -> Result<Change, ChangeError> {
    let (key, value) = match change.split_once('=') {
        Some((key, value)) => (key.trim(), Some(value.trim()).filter(|v| !v.is_empty())),
        None => (change.trim(), None),
    };
    let told = |(before, after): (String, String)| Change {
        change: change.to_owned(),
        before,
        after,
    };
    if key == "rate" {
        return change_rate(problem, needed(key, value)?).map(told);
    }
    let unknown = || ChangeError::Key(key.to_owned());
    let (what, rest) = key.split_once('.').ok_or_else(unknown)?;
    // Names of nodes may contain dots; those of properties do not.
    let (place, property) = rest.rsplit_once('.').ok_or_else(unknown)?;
    match what {
        "link" | "oneway" => {
            let (from, to) = place.split_once(':').ok_or_else(unknown)?;
            let ways: &[(&str, &str)] = &[(from, to), (to, from)];
            let ways = if what == "link" { ways } else { &ways[..1] };
            change_links(problem, ways, key, property, value).map(told)
        }
        "node" => change_node(problem, place, key, property, value).map(told),
        _ => Err(unknown()),
    }
}

fn needed<'a>(key: &str, value: Option<&'a str>) -> Result<&'a str, ChangeError> {
    value.ok_or_else(|| ChangeError::NoValue(key.to_owned()))
}

fn needs_none(key: &str, value: Option<&str>) -> Result<(), ChangeError> {
    match value {
        None => Ok(()),
        Some(_) => Err(ChangeError::NeedsNone(key.to_owned())),
    }
}

fn change_rate(problem: &mut Problem, value: &str) -> Result<(String, String), ChangeError> {
    let target = Target::parse(value, Kind::Rate)?;
    let mut texts = (Vec::new(), Vec::new());
    for workload in &mut problem.workloads {
        let before = workload.rate_per_second;
        workload.rate_per_second = target.of(before);
        texts.0.push(format!("{before}/s"));
        texts.1.push(format!("{}/s", workload.rate_per_second));
    }
    Ok((texts.0.join(", "), texts.1.join(", ")))
}

fn change_links(
    problem: &mut Problem,
    ways: &[(&str, &str)],
    key: &str,
    property: &str,
    value: Option<&str>,
) -> Result<(String, String), ChangeError> {
    for (from, to) in ways {
        for name in [from, to] {
            if !problem.nodes.iter().any(|n| n.name == **name) {
                return Err(ChangeError::Node((*name).to_owned()));
            }
        }
        if problem.link(from, to).is_none() {
            return Err(ChangeError::Link((*from).to_owned(), (*to).to_owned()));
        }
    }
    let set: Box<SetLink> = match property {
        "bandwidth" => {
            let text = needed(key, value)?;
            let target = Target::parse(text, Kind::Bandwidth)?;
            if target.of(1.0) <= 0.0 {
                let reason = "is not above zero; write .gone for a link that fails";
                return Err(out_of_range(text, reason));
            }
            Box::new(move |link| {
                let before = link.bytes_per_second;
                link.bytes_per_second = target.of(before);
                [before, link.bytes_per_second]
            })
        }
        "latency" => {
            let target = Target::parse(needed(key, value)?, Kind::Time)?;
            Box::new(move |link| {
                let before = link.latency_seconds;
                link.latency_seconds = target.of(before);
                [before, link.latency_seconds]
            })
        }
        "gone" => {
            needs_none(key, value)?;
            for (from, to) in ways {
                if let Some(row) = problem.links.get_mut(*from) {
                    row.remove(*to);
                }
            }
            return Ok(("there".to_owned(), "gone".to_owned()));
        }
        _ => return Err(ChangeError::Key(key.to_owned())),
    };
    let show = |value: f64| match property {
        "bandwidth" => crate::show::bandwidth(value),
        _ => crate::show::time(value),
    };
    let mut texts: [Vec<String>; 2] = [Vec::new(), Vec::new()];
    for (from, to) in ways {
        let Some(link) = problem.links.get_mut(*from).and_then(|r| r.get_mut(*to)) else {
            continue;
        };
        for (text, value) in texts.iter_mut().zip(set(link)) {
            text.push(show(value));
        }
    }
    let [before, after] = texts.map(|mut t| {
        t.dedup();
        t.join(" and back ")
    });
    Ok((before, after))
}

fn change_node(
    problem: &mut Problem,
    name: &str,
    key: &str,
    property: &str,
    value: Option<&str>,
) -> Result<(String, String), ChangeError> {
    let at = problem.nodes.iter().position(|n| n.name == name);
    let at = at.ok_or_else(|| ChangeError::Node(name.to_owned()))?;
    let node = &mut problem.nodes[at];
    match property {
        "memory" => {
            let target = Target::parse(needed(key, value)?, Kind::Size)?;
            let before = node.memory_bytes;
            node.memory_bytes = target.of(before as f64).round() as u64;
            let show = lamina_placement::explain::bytes;
            Ok((show(before), show(node.memory_bytes)))
        }
        "load" => {
            let text = needed(key, value)?;
            let before = node.load_share;
            let after = Target::parse(text, Kind::Share)?.of(before);
            if after >= 1.0 {
                return Err(out_of_range(text, "is not below 100%"));
            }
            node.load_share = after;
            Ok((crate::show::share(before), crate::show::share(after)))
        }
        "speed" => {
            let text = needed(key, value)?;
            let Target::Factor(factor) = Target::parse(text, Kind::Number)? else {
                return Err(out_of_range(
                    text,
                    "is no factor; write 0.5x for half as fast as now",
                ));
            };
            if factor <= 0.0 {
                return Err(out_of_range(
                    text,
                    "is not above zero; write .gone for a node that fails",
                ));
            }
            let blocks = problem.workloads.iter_mut().flat_map(|w| &mut w.blocks);
            for cost in blocks.filter_map(|b| b.costs.get_mut(name)) {
                cost.seconds /= factor;
                cost.cut_penalty_seconds /= factor;
            }
            Ok(("1x".to_owned(), format!("{factor}x")))
        }
        "gone" => {
            needs_none(key, value)?;
            if problem.workloads.iter().any(|w| w.entry == name) {
                return Err(ChangeError::Entry(name.to_owned()));
            }
            node.excluded = Some("gone".to_owned());
            problem.links.remove(name);
            for row in problem.links.values_mut() {
                row.remove(name);
            }
            Ok(("there".to_owned(), "gone".to_owned()))
        }
        _ => Err(ChangeError::Key(key.to_owned())),
    }
}

/// The two ends of `link.A:B.bandwidth`, as in `--regions`.
///
/// # Errors
/// [`ChangeError`] if the key is invalid or there is no such link.
pub(crate) fn link_of(problem: &Problem, key: &str) -> Result<(String, String), ChangeError> {
    let inner = key
        .strip_prefix("link.")
        .and_then(|k| k.strip_suffix(".bandwidth"))
        .and_then(|k| k.split_once(':'));
    let Some((a, b)) = inner else {
        return Err(ChangeError::Key(key.to_owned()));
    };
    for (from, to) in [(a, b), (b, a)] {
        if problem.link(from, to).is_none() {
            return Err(ChangeError::Link(from.to_owned(), to.to_owned()));
        }
    }
    Ok((a.to_owned(), b.to_owned()))
}

/// Puts the answers before and after side by side.
pub(crate) fn beside(
    changed: &Problem,
    changes: Vec<Change>,
    before: &[Row],
    after: &[Row],
    reasons: Vec<String>,
) -> WhatIf {
    let named = |rows: &[Row], name: &str| {
        let row = rows.iter().find(|r| r.solution.strategy == name);
        row.cloned()
    };
    let answers = after.iter().map(|r| r.solution.strategy.as_str());
    let lost = before.iter().map(|r| r.solution.strategy.as_str());
    let mut names: Vec<&str> = answers.collect();
    for name in lost {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let strategies = names
        .iter()
        .map(|name| moved(changed, name, named(before, name), named(after, name)))
        .collect();
    WhatIf {
        changes,
        strategies,
        reasons,
    }
}

fn moved(changed: &Problem, name: &str, before: Option<Row>, after: Option<Row>) -> Moved {
    let placements: &[Placement] = before.as_ref().map_or(&[], |r| &r.solution.placements);
    let kept = match placements {
        [] => None,
        placements => Some(evaluate(changed, placements)),
    };
    let (kept, why_not_kept) = match kept {
        None => (None, None),
        Some(Ok(metrics)) => (Some(metrics.objective), None),
        Some(Err(violations)) => (None, violations.first().map(ToString::to_string)),
    };
    let objective = |row: &Option<Row>| row.as_ref().and_then(Row::objective);
    let after_objective = objective(&after);
    let gain = kept.zip(after_objective).filter(|(_, a)| *a > 0.0);
    Moved {
        strategy: name.to_owned(),
        before: objective(&before),
        kept,
        why_not_kept,
        after: after_objective,
        gain: gain.map(|(kept, after)| kept / after),
        proved: after.as_ref().is_some_and(Row::is_optimal),
        paths_before: before.map(|r| r.paths).unwrap_or_default(),
        paths_after: after.map(|r| r.paths).unwrap_or_default(),
    }
}
