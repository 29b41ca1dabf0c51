//! The report as text.

use crate::compare::nodes_of;
use crate::report::{LinkRegions, Moved, Outcome, Report, Row, Sent, Verdict, WhatIf};
use crate::show;
use crate::table::{Dress, Table};
use lamina_placement::explain::{Explanation, Stretch, bytes};
use lamina_placement::{Criterion, Objective, Status};
use lamina_profile::percent;

mod explanation;

/// All requested results, in reading order.
pub fn render(report: &Report, dress: &Dress) -> String {
    let mut lines = vec![headline(report), String::new()];
    if !report.strategies.is_empty() {
        lines.extend(strategies(report, dress));
        lines.push(String::new());
    }
    if let Some(verdict) = &report.verdict {
        lines.extend(sentence(report, verdict, dress));
        lines.extend(thresholds(report));
        lines.extend(report.crossings.iter().map(sent));
    }
    lines.extend(no_placement(report));
    if !report.skipped.is_empty() {
        lines.push(String::new());
        lines.extend(skipped(report, dress));
    }
    let objective = &report.question.objective;
    if let Some(explanation) = &report.explanation {
        lines.push(String::new());
        let loaded = report
            .question
            .workloads
            .iter()
            .any(|w| w.rate_per_second > 0.0);
        lines.extend(explanation::lines(explanation, objective, loaded, dress));
    }
    if let Some(what_if) = &report.what_if {
        lines.push(String::new());
        lines.extend(changed(what_if, objective, dress));
    }
    if let Some(regions) = &report.regions {
        lines.push(String::new());
        lines.extend(by_bandwidth(regions, dress));
    }
    if report.cancelled {
        lines.push(String::new());
        lines.push("cancelled: this is what was found until then".to_owned());
    }
    lines.join("\n") + "\n"
}

fn headline(report: &Report) -> String {
    let asked = &report.question;
    let models = asked.workloads.iter().map(|w| {
        let mut text = format!(
            "{} from {}: {} blocks, {}",
            w.name,
            w.entry,
            w.blocks,
            bytes(w.slice_bytes)
        );
        if w.rate_per_second > 0.0 {
            text += &format!(", {}/s", w.rate_per_second);
        }
        if let Some(limit) = w.latency_limit_seconds {
            text += &format!(", at most {}", show::time(limit));
        }
        text
    });
    let models: Vec<String> = models.collect();
    format!(
        "{}; {} nodes, {} links; objective {}",
        models.join("; "),
        asked.nodes,
        asked.links,
        show::objective_name(&asked.objective)
    )
}

fn strategies(report: &Report, dress: &Dress) -> Vec<String> {
    let mut table = Table::new([
        "STRATEGY",
        "LATENCY",
        "THROUGHPUT",
        "ENERGY",
        "MONEY/1M",
        "BUSIEST",
        "SOLVE",
        "PROOF",
        "PATH",
    ]);
    for row in &report.strategies {
        let metrics = row.solution.metrics.as_ref();
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        table.add([
            row.solution.strategy.clone(),
            or_dash(metrics.map(|m| show::time(m.latency_seconds))),
            or_dash(row.throughput_per_second.map(show::rate)),
            or_dash(metrics.map(|m| show::energy(m.energy_joules))),
            or_dash(metrics.map(|m| show::money(m.money))),
            or_dash(metrics.map(|m| show::share(m.utilisation))),
            show::time(row.solve_seconds),
            proof(row),
            path(row),
        ]);
    }
    let metrics = || {
        report
            .strategies
            .iter()
            .filter_map(|r| r.solution.metrics.as_ref())
    };
    if metrics().all(|m| m.energy_joules == 0.0) {
        table.drop_column("ENERGY");
    }
    if metrics().all(|m| m.money == 0.0) {
        table.drop_column("MONEY/1M");
    }
    if metrics().all(|m| m.utilisation == 0.0) {
        table.drop_column("BUSIEST");
    }
    let asked = &report.question.objective.criteria();
    let optional = [
        ("SOLVE", None),
        ("MONEY/1M", Some(Criterion::Money)),
        ("BUSIEST", Some(Criterion::Fairness)),
        ("ENERGY", Some(Criterion::Energy)),
    ];
    let unasked = optional
        .iter()
        .filter(|(_, shows)| shows.is_none_or(|c| !asked.contains(&c)))
        .map(|(name, _)| *name);
    table.fit(dress, &unasked.collect::<Vec<_>>());
    table.lines(dress, report.outcome == Outcome::Found)
}

/// An answer's certificate, as a cell.
fn proof(row: &Row) -> String {
    let certificate = &row.solution.certificate;
    match (certificate.status, certificate.gap) {
        (Status::Optimal, _) => "optimal".to_owned(),
        (Status::Infeasible, _) => "infeasible".to_owned(),
        (Status::Feasible, Some(gap)) => format!("gap {:.1} %", gap * 100.0),
        (Status::Feasible | Status::Unknown, _) => "-".to_owned(),
    }
}

fn path(row: &Row) -> String {
    match row.solution.certificate.status {
        Status::Infeasible => "no placement".to_owned(),
        Status::Unknown => "none found".to_owned(),
        Status::Optimal | Status::Feasible => row.paths.join(", "),
    }
}

/// Whether to split, in a sentence or two.
fn sentence(report: &Report, verdict: &Verdict, dress: &Dress) -> Vec<String> {
    let objective = &report.question.objective;
    let is_split = verdict.split;
    let lead = lead(report, verdict);
    let proof = if verdict.proved {
        "No placement is better (proved)."
    } else {
        "Whether there is a better one was not settled."
    };
    let mut text = format!("{} {proof}", dress.bold(&lead));
    match (&verdict.whole, verdict.gain) {
        (Some(whole), Some(gain)) if is_split => {
            let value = show::objective(objective, whole.objective);
            let name = show::objective_name(objective);
            text += &format!(
                " The best whole placement, on {}, has {name} {value}: splitting gains {gain:.2}x.",
                whole.node
            );
        }
        (None, _) if is_split => {
            if let Some(not) = &verdict.why_not_whole {
                text += &format!(
                    " No single node can take the whole model; nearest is {} ({}).",
                    not.node, not.reason
                );
            }
        }
        _ => {}
    }
    vec![text]
}

/// The encoding of values between two nodes.
fn sent(sent: &Sent) -> String {
    let (from, to) = (&sent.from, &sent.to);
    match (sent.dtype, sent.error) {
        (Some(dtype), Some(error)) => format!(
            "{from}→{to}: {} as {dtype} in the place of {}, which changes answers by {}.",
            bytes(sent.bytes),
            bytes(sent.raw_bytes),
            percent(error)
        ),
        _ => format!(
            "{from}→{to}: {} as they are: {}.",
            bytes(sent.bytes),
            sent.reason
        ),
    }
}

/// The thresholds that the best answer chose.
fn thresholds(report: &Report) -> Vec<String> {
    let Some(best) = report.strategies.first() else {
        return Vec::new();
    };
    let found = best.solution.metrics.iter().flat_map(|m| &m.workloads);
    let chosen = best.solution.placements.iter().zip(found);
    report
        .question
        .workloads
        .iter()
        .zip(chosen)
        .filter(|(asked, _)| !asked.exits_after.is_empty())
        .map(|(asked, (placement, metrics))| {
            let exits = asked.exits_after.iter().zip(&placement.thresholds);
            let exits: Vec<String> = exits
                .map(|(block, threshold)| format!("behind block {block} from {threshold} on"))
                .collect();
            let accuracy = metrics.accuracy.map(|a| {
                let share = show::share(a);
                format!(" Expected accuracy {share}.")
            });
            format!(
                "Requests of {} leave {}.{}",
                asked.name,
                exits.join(", "),
                accuracy.unwrap_or_default()
            )
        })
        .collect()
}

/// The nodes that compute, for the advice.
fn lead(report: &Report, verdict: &Verdict) -> String {
    let placements = report.strategies.first().map(|r| &r.solution.placements);
    match placements.map(Vec::as_slice).unwrap_or_default() {
        [_] if verdict.split => format!("Split over {}.", verdict.nodes.join(", ")),
        [_] => format!(
            "Do not split: the whole model on {}.",
            verdict.nodes.join(", ")
        ),
        several => {
            let each = several.iter().map(|p| {
                let nodes = nodes_of(&p.segments);
                let how = if nodes.len() > 1 {
                    "split over"
                } else {
                    "whole on"
                };
                format!("{} {how} {}", p.workload, nodes.join(", "))
            });
            let each: Vec<String> = each.collect();
            format!("{}.", each.join("; "))
        }
    }
}

fn no_placement(report: &Report) -> Vec<String> {
    let lead = match report.outcome {
        Outcome::Found => return Vec::new(),
        Outcome::Infeasible => "There is no placement (proved):",
        Outcome::Unknown => "No placement was found; give more time with --deadline:",
    };
    let reasons = report.reasons.iter().map(|r| format!("  {r}"));
    std::iter::once(lead.to_owned()).chain(reasons).collect()
}

fn skipped(report: &Report, dress: &Dress) -> Vec<String> {
    let texts = report
        .skipped
        .iter()
        .map(|s| dress.dim(&format!("not {}: {}", s.strategy, s.reason)));
    texts.collect()
}

fn changed(what_if: &WhatIf, objective: &Objective, dress: &Dress) -> Vec<String> {
    let mut lines = Vec::new();
    for change in &what_if.changes {
        let lead = dress.bold(&format!("What if {}", change.change));
        lines.push(format!("{lead}  ({} → {})", change.before, change.after));
    }
    lines.push(String::new());
    let mut table = Table::new([
        "STRATEGY",
        "BEFORE",
        "KEPT",
        "AFTER",
        "GAIN",
        "PROOF",
        "PATH AFTER",
    ]);
    for moved in &what_if.strategies {
        let value = |v: Option<f64>| v.map_or("-".to_owned(), |v| show::objective(objective, v));
        let gain = moved.gain.map_or("-".to_owned(), |g| format!("{g:.2}x"));
        table.add([
            moved.strategy.clone(),
            value(moved.before),
            value(moved.kept),
            value(moved.after),
            gain,
            if moved.proved { "optimal" } else { "-" }.to_owned(),
            path_after(moved),
        ]);
    }
    let found = what_if.reasons.is_empty();
    lines.extend(table.lines(dress, found));
    if let Some(best) = what_if.strategies.first().filter(|_| found) {
        lines.push(String::new());
        lines.push(advice(best, objective));
    }
    if !found {
        lines.push(String::new());
        lines.push("After the change there is no placement:".to_owned());
        lines.extend(what_if.reasons.iter().map(|r| format!("  {r}")));
    }
    lines
}

fn path_after(moved: &Moved) -> String {
    match (&moved.paths_after, &moved.paths_before) {
        (after, _) if after.is_empty() => "none found".to_owned(),
        (after, before) if after == before => "unchanged".to_owned(),
        (after, _) => after.join(", "),
    }
}

/// The conclusion for the best strategy's answer.
fn advice(best: &Moved, objective: &Objective) -> String {
    let (before, after) = (best.paths_before.join(", "), best.paths_after.join(", "));
    if best.paths_before.is_empty() {
        return format!("There was no placement before; now {after}.");
    }
    if before == after {
        return format!("{after} stays the best.");
    }
    match (best.gain, &best.why_not_kept) {
        (Some(gain), _) => format!("Moving from {before} to {after} gains {gain:.2}x."),
        (None, Some(why)) => format!("{before} cannot be kept ({why}); move to {after}."),
        (None, None) => {
            let value = best.after.map(|v| show::objective(objective, v));
            format!(
                "Move from {before} to {after}: {}.",
                value.unwrap_or_default()
            )
        }
    }
}

fn by_bandwidth(regions: &LinkRegions, dress: &Dress) -> Vec<String> {
    let lead = format!(
        "Best placement by bandwidth of {}, now {}",
        regions.link,
        show::bandwidth(regions.bytes_per_second)
    );
    let mut lines = vec![dress.bold(&lead)];
    if let Some(why) = &regions.why_not {
        lines.push(format!("  not worked out: {why}"));
        return lines;
    }
    let mut table = Table::new(["FROM", "TO", "LATENCY", "PATH"]).indented(2);
    for region in &regions.regions {
        let [slow, fast] = region
            .seconds
            .map_or(["-".to_owned(), "-".to_owned()], |s| s.map(show::time));
        let path = match region.paths.as_slice() {
            [] => "no placement".to_owned(),
            paths => paths.join(", "),
        };
        table.add([
            show::bandwidth(region.from_bytes_per_second),
            show::bandwidth(region.to_bytes_per_second),
            format!("{slow} to {fast}"),
            path,
        ]);
    }
    lines.extend(table.lines(dress, false));
    lines
}
