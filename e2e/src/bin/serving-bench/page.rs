//! The page of the results: each figure beside its goal.

use std::fmt::Write as _;

const HEAD: &str = "\
# Requests: what serving costs

Written by `cargo xtask bench serving`; run it again instead of editing.

Five hosts in network namespaces on one machine, with limits on their processors and links of
stated rates between them; the chart's agents with TLS between them. Requests come over gRPC from
the bench's own client, which costs less than tritonclient, outside the hosts' limits; the digits
and the rows that say so come from tritonclient. MobileNetV2 with one image of 600 kB a request,
unless a row says otherwise; the network of handwritten digits is that of `sdk/examples/digits.py`.
Compare the ratios: times are those of small shares of one machine, which the hosts, the emulated
network and the client share.

The *floor* of a request is what its hosts compute, the round trip and the bytes over the link's
rate, without any cost of serving.

";

/// Figures in the order in which they were measured.
pub(crate) struct Page {
    from: String,
    sections: Vec<Section>,
    notes: Vec<String>,
}

struct Section {
    title: &'static str,
    rows: Vec<[String; 3]>,
}

impl Page {
    /// An empty page about `commit` on `machine`.
    pub(crate) fn new(machine: &str, commit: &str) -> Self {
        Self {
            from: format!("{machine}; commit {commit}"),
            sections: Vec::new(),
            notes: Vec::new(),
        }
    }

    /// Begins a table.
    pub(crate) fn section(&mut self, title: &'static str) {
        println!("\n{title}");
        self.sections.push(Section {
            title,
            rows: Vec::new(),
        });
    }

    /// Adds a row; `goal` is empty if there is none.
    pub(crate) fn row(&mut self, what: impl Into<String>, goal: &str, figure: impl Into<String>) {
        let row = [what.into(), goal.to_owned(), figure.into()];
        println!("  {}: {}{}", row[0], row[2], told(goal));
        if let Some(section) = self.sections.last_mut() {
            section.rows.push(row);
        }
    }

    /// Adds a note below the tables.
    pub(crate) fn note(&mut self, text: String) {
        println!("  {text}");
        self.notes.push(text);
    }

    /// The whole page as Markdown.
    pub(crate) fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        let _ = writeln!(text, "{}.", self.from);
        for section in &self.sections {
            let _ = writeln!(
                text,
                "\n## {}\n\n| | goal | measured |\n|---|---|---|",
                section.title
            );
            for [what, goal, figure] in &section.rows {
                let _ = writeln!(text, "| {what} | {goal} | {figure} |");
            }
        }
        if !self.notes.is_empty() {
            let _ = writeln!(text, "\n## What else was seen\n");
        }
        for note in &self.notes {
            let _ = writeln!(text, "- {note}");
        }
        text
    }
}

fn told(goal: &str) -> String {
    if goal.is_empty() {
        String::new()
    } else {
        format!(" (goal {goal})")
    }
}

/// Milliseconds with one decimal.
pub(crate) fn millis(seconds: f64) -> String {
    format!("{:.1} ms", seconds * 1e3)
}

/// A median with its 99th percentile.
pub(crate) fn times(p50: f64, p99: f64) -> String {
    format!("{} (p99 {})", millis(p50), millis(p99))
}
