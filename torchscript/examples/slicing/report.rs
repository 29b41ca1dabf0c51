//! docs/benchmarks/slicing.md.

use crate::Measured;
use crate::rounds::{Spread, Times};
use crate::splits::Slice;
use crate::variants::Variant;
use lamina_model::Manifest;
use serde::Serialize;
use std::fmt::Write as _;
use std::fs;

/// The manifest's figures of a block and the cut after it.
#[derive(Serialize)]
pub(crate) struct Cut {
    pub(crate) seconds: f64,
    pub(crate) penalty_seconds: f64,
    pub(crate) bytes: u64,
}

pub(crate) fn cuts(manifest: &Manifest) -> Vec<Cut> {
    let cut = |(i, block): (usize, &lamina_model::Block)| Cut {
        seconds: block.time.p50,
        penalty_seconds: block.cut_penalty_seconds,
        bytes: manifest.live_bytes(i + 1),
    };
    manifest.blocks.iter().enumerate().map(cut).collect()
}

impl Measured {
    fn times(&self, variant: Variant) -> Option<&Times> {
        self.variants.iter().find(|t| t.variant == variant)
    }

    /// The whole model in libtorch's fastest way.
    fn fastest_whole(&self) -> Option<&Times> {
        let wholes = self
            .variants
            .iter()
            .filter(|t| t.variant.is_optimized_whole());
        wholes.min_by(|a, b| a.wall.median.total_cmp(&b.wall.median))
    }

    /// Share of wall and of CPU time, medians.
    fn ratio(&self, of: Variant, to: Option<&Times>) -> (f64, f64) {
        match (self.times(of), to) {
            (Some(of), Some(to)) => (
                of.wall.median / to.wall.median,
                of.cpu.median / to.cpu.median,
            ),
            _ => (f64::NAN, f64::NAN),
        }
    }

    /// CPU time of the slices per predicted second, as the operator learns it per host.
    fn correction(&self) -> f64 {
        let took: f64 = self.slices.iter().map(|s| s.cpu.median).sum();
        let predicted: f64 = self.slices.iter().map(|s| s.predicted_seconds).sum();
        took / predicted
    }
}

pub(crate) fn page(all: &[Measured], runtime: &str, date: &str, rounds: usize) -> String {
    let mut page = String::new();
    let out = &mut page;
    let _ = writeln!(out, "# What slicing costs\n");
    let _ = writeln!(
        out,
        "Written by `cargo xtask bench slicing`; run it again instead of editing. {date}, {}, \
         {runtime}, one thread, medians of {rounds} turns (in each, every variant runs once). \
         Ratios below 1 are faster.\n",
        machine()
    );
    ratios(out, all);
    times(out, all);
    loads(out, all);
    predictions(out, all);
    for measured in all {
        penalties(out, measured);
    }
    page
}

fn ratios(out: &mut String, all: &[Measured]) {
    let _ = writeln!(
        out,
        "## Ratios\n\nThe slice holds all blocks of the model, merged as agents load them. The \
         fastest whole is the best of what libtorch offers for a model in one piece, measured in \
         the same turns. In parentheses: of the thread's CPU time, which other work on the host \
         disturbs less.\n\n\
         | model | blocks | fastest whole | slice / fastest whole | slice / frozen whole \
         | chain / fastest whole |\n|---|---|---|---|---|---|"
    );
    for m in all {
        let fastest = m.fastest_whole();
        let pair = |(wall, cpu): (f64, f64)| format!("{wall:.2} ({cpu:.2})");
        let _ = writeln!(
            out,
            "| {} | {} | {} | **{}** | {} | {} |",
            m.model,
            m.blocks,
            fastest.map_or("", |t| t.variant.title()),
            pair(m.ratio(Variant::Merged, fastest)),
            pair(m.ratio(Variant::Merged, m.times(Variant::Frozen))),
            pair(m.ratio(Variant::Chain, fastest)),
        );
    }
}

fn times(out: &mut String, all: &[Measured]) {
    let _ = writeln!(
        out,
        "\n## Times\n\nMilliseconds of one request of batch 1: median, and in parentheses the \
         10th and the 90th percentile.\n"
    );
    header(out, all, "");
    for (row, first) in all
        .first()
        .into_iter()
        .flat_map(|m| m.variants.iter().enumerate())
    {
        let _ = write!(out, "| {} |", first.variant.title());
        for m in all {
            let s = m.variants[row].wall;
            let [p10, median, p90] = [s.p10, s.median, s.p90].map(|s| s * 1e3);
            let _ = write!(out, " {median:.1} ({p10:.1}–{p90:.1}) |");
        }
        let _ = writeln!(out);
    }
}

fn loads(out: &mut String, all: &[Measured]) {
    let _ = writeln!(
        out,
        "\n## Memory and load time of one copy\n\nEach in a process of its own: MB that it holds \
         after a request, MB at the peak of loading, and seconds from the files to the end of the \
         warm-up.\n"
    );
    header(out, all, "");
    for (row, first) in all
        .first()
        .into_iter()
        .flat_map(|m| m.loads.iter().enumerate())
    {
        let _ = write!(out, "| {} |", first.variant.title());
        for m in all {
            let took = m.loads[row].took;
            let mb = |bytes: u64| bytes as f64 / 1e6;
            let _ = write!(
                out,
                " {:.0}, {:.0}, {:.1} s |",
                mb(took.bytes),
                mb(took.peak_bytes),
                took.seconds
            );
        }
        let _ = writeln!(out);
    }
}

fn header(out: &mut String, all: &[Measured], corner: &str) {
    let _ = write!(out, "| {corner} |");
    for m in all {
        let _ = write!(out, " {} |", m.model);
    }
    let _ = writeln!(out, "\n|{}", "---|".repeat(all.len() + 1));
}

fn predictions(out: &mut String, all: &[Measured]) {
    let _ = writeln!(
        out,
        "\n## Predicted and measured slices\n\nRandom cuts into two and three slices. A slice is \
         predicted as strategies do it: the times of its blocks and the penalty of the cut behind \
         it, from the manifest. Before each slice runs, the caches are filled with other data, as \
         on a host that does something else between two requests. Errors are shares of the \
         measured median. The corrected error compares CPU time after one factor for all slices, as the operator learns one for each \
         host: it shows the prediction without other work on the host.\n\n\
         | model | slices | median error | 90th percentile | median error, corrected \
         | 90th percentile | prepared in |\n|---|---|---|---|---|---|---|"
    );
    for m in all {
        let factor = m.correction();
        let errors = Spread::of(m.slices.iter().map(Slice::error).collect());
        let corrected = Spread::of(m.slices.iter().map(|s| s.cpu_error(factor)).collect());
        let percent = |share: f64| format!("{:.1} %", share * 100.0);
        let _ = writeln!(
            out,
            "| {} | {} | **{}** | {} | {} | {} | {:.0} s |",
            m.model,
            m.slices.len(),
            percent(errors.median),
            percent(errors.p90),
            percent(corrected.median),
            percent(corrected.p90),
            m.prepare_seconds,
        );
    }
}

fn penalties(out: &mut String, m: &Measured) {
    let _ = writeln!(
        out,
        "\n## {}: blocks and cuts\n\n| block | ms | penalty of the cut behind it, ms \
         | KB across it |\n|---|---|---|---|",
        m.model
    );
    for (i, cut) in m.cuts.iter().enumerate() {
        let _ = writeln!(
            out,
            "| {i} | {:.2} | {:.2} | {:.0} |",
            cut.seconds * 1e3,
            cut.penalty_seconds * 1e3,
            cut.bytes as f64 / 1e3
        );
    }
    let _ = writeln!(
        out,
        "\n| slice | predicted, ms | measured, ms | error | corrected |\n|---|---|---|---|---|"
    );
    for slice in &m.slices {
        let Slice { first, last, .. } = slice;
        let _ = writeln!(
            out,
            "| {first}–{last} | {:.1} | {:.1} | {:.0} % | {:.0} % |",
            slice.predicted_seconds * 1e3,
            slice.wall.median * 1e3,
            slice.error() * 100.0,
            slice.cpu_error(m.correction()) * 100.0
        );
    }
}

/// The processor, as the kernel names it.
fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find(|l| l.starts_with("model name"));
    let model = model
        .and_then(|l| l.split(": ").nth(1))
        .unwrap_or("unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or("?").to_owned();
    format!("{model}, {cores} cores, load {load} at the end")
}
