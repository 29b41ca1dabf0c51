//! `--explain` as text.

use super::{Dress, Explanation, Objective, Stretch, Table, bytes};
use crate::show;
use lamina_placement::explain::Way;

/// Nodes listed one by one; of more, only the counts by reason.
const MOST_UNUSED: usize = 12;

pub(super) fn lines(
    explanation: &Explanation,
    objective: &Objective,
    loaded: bool,
    dress: &Dress,
) -> Vec<String> {
    let mut lines = Vec::new();
    for (i, way) in explanation.workloads.iter().enumerate() {
        if i > 0 {
            lines.push(String::new());
        }
        lines.extend(stretches(way, &explanation.strategy, loaded, dress));
    }
    let mut section = |title: &str, body: Vec<String>| {
        if !body.is_empty() {
            lines.push(String::new());
            lines.push(dress.bold(title));
            lines.extend(body);
        }
    };
    section("Nearly full", tight(explanation));
    section("Limits that bind", binding(explanation, objective));
    section("Next best", alternatives(explanation, objective, dress));
    section(
        "The whole model on one tier",
        baselines(explanation, objective, dress),
    );
    section("Nodes without blocks", unused(explanation, objective));
    lines
}

/// `loaded`: whether a rate is known; without one nothing waits.
fn stretches(way: &Way, strategy: &str, loaded: bool, dress: &Dress) -> Vec<String> {
    let queue = match way.queue_seconds {
        _ if !loaded => String::new(),
        Some(seconds) => format!(" and about {} of waiting", show::time(seconds)),
        None => " and more work than time".to_owned(),
    };
    let title = format!(
        "Why {} ({strategy}): {}{queue}",
        way.path,
        show::time(way.latency_seconds),
    );
    let mut table = Table::new([
        "SEGMENT",
        "COMPUTE",
        "LATENCY",
        "TRANSFER",
        "QUEUE",
        "CARRIES",
        "REACHED BY",
    ])
    .indented(2);
    for stretch in &way.stretches {
        let crossing = |text: String| {
            let crosses = stretch.bytes > 0 || stretch.round_trip_seconds > 0.0;
            if crosses { text } else { "-".to_owned() }
        };
        table.add([
            segment(stretch),
            show::time(stretch.compute_seconds),
            crossing(show::time(stretch.round_trip_seconds)),
            crossing(show::time(stretch.transfer_seconds)),
            stretch.queue_seconds.map_or("-".to_owned(), show::time),
            crossing(bytes(stretch.bytes)),
            show::share(stretch.reach),
        ]);
    }
    if way.stretches.iter().all(|s| s.reach >= 1.0) {
        table.drop_column("REACHED BY");
    }
    if !loaded {
        table.drop_column("QUEUE");
    }
    let mut lines = vec![dress.bold(&title)];
    lines.extend(table.lines(dress, false));
    let stretches: f64 = way.stretches.iter().map(time_of).sum();
    let rest = way.latency_seconds - stretches;
    if rest > way.latency_seconds * 1e-6 {
        lines.push(format!("  the reply's way home: {}", show::time(rest)));
    }
    lines
}

fn time_of(stretch: &Stretch) -> f64 {
    stretch.compute_seconds + stretch.round_trip_seconds + stretch.transfer_seconds
}

fn segment(stretch: &Stretch) -> String {
    match (stretch.blocks.first(), stretch.blocks.last()) {
        (Some(a), Some(b)) if a != b => format!("{}[{a}-{b}]", stretch.node),
        (Some(a), _) => format!("{}[{a}]", stretch.node),
        _ => stretch.node.clone(),
    }
}

fn tight(explanation: &Explanation) -> Vec<String> {
    let places = explanation.tight.iter();
    places
        .map(|t| {
            let share = show::share(t.share);
            format!("  {} of {}: {share} of what is allowed", t.what, t.place)
        })
        .collect()
}

fn binding(explanation: &Explanation, objective: &Objective) -> Vec<String> {
    let reliefs = explanation.binding.iter();
    reliefs
        .map(|r| {
            format!(
                "  without {}: {} instead of {}",
                r.limit,
                show::objective(objective, r.objective),
                show::objective(objective, explanation.objective)
            )
        })
        .collect()
}

fn alternatives(explanation: &Explanation, objective: &Objective, dress: &Dress) -> Vec<String> {
    if explanation.alternatives.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new(["CHANGE", "OBJECTIVE", "AGAINST BEST", "PATH"]).indented(2);
    for a in &explanation.alternatives {
        table.add([
            a.change.clone(),
            show::objective(objective, a.objective),
            against(a.objective, explanation.objective),
            a.paths.join(", "),
        ]);
    }
    table.lines(dress, false)
}

fn against(value: f64, best: f64) -> String {
    if best > 0.0 {
        format!("{:.2}x", value / best)
    } else {
        "-".to_owned()
    }
}

fn baselines(explanation: &Explanation, objective: &Objective, dress: &Dress) -> Vec<String> {
    if explanation.baselines.is_empty() {
        return Vec::new();
    }
    let mut table = Table::new(["TIER", "OBJECTIVE", "AGAINST BEST", "PATH"]).indented(2);
    for b in &explanation.baselines {
        let not = || {
            b.why_not
                .clone()
                .unwrap_or_else(|| "not possible".to_owned())
        };
        match b.objective {
            Some(value) => table.add([
                b.tier.to_string(),
                show::objective(objective, value),
                against(value, explanation.objective),
                b.paths.join(", "),
            ]),
            None => table.add([b.tier.to_string(), "-".into(), "-".into(), not()]),
        }
    }
    table.lines(dress, false)
}

fn unused(explanation: &Explanation, objective: &Objective) -> Vec<String> {
    let nodes = explanation.unused.iter();
    let mut lines: Vec<String> = nodes
        .take(MOST_UNUSED)
        .map(|u| {
            let bound = u
                .at_least
                .map(|b| format!(" (with it at least {})", show::objective(objective, b)));
            format!("  {}: {}{}", u.node, u.reason, bound.unwrap_or_default())
        })
        .collect();
    let more = explanation.unused.len().saturating_sub(MOST_UNUSED);
    if more > 0 {
        lines.push(format!("  and {more} more (all of them with --json)"));
    }
    lines
}
