//! A manifest as a readable table.

use lamina_model::{Exit, ExitCriterion, Manifest, Rung};
use std::fmt::Write as _;

const HEAD: [&str; 7] = [
    "block",
    "MFLOP",
    "ms",
    "penalty ms",
    "weights KB",
    "out KB",
    "out shape",
];

/// One line per block, one per exit and a summary.
pub(super) fn table(manifest: &Manifest) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for (i, block) in manifest.blocks.iter().enumerate() {
        let shapes: Vec<String> = block.outputs.iter().map(|o| shape(&o.shape)).collect();
        rows.push([
            i.to_string(),
            format!("{:.1}", block.flops as f64 / 1e6),
            format!("{:.2}", block.time.p50 * 1e3),
            format!("{:.2}", block.cut_penalty_seconds * 1e3),
            format!("{:.1}", block.weight_bytes as f64 / 1e3),
            format!("{:.1}", manifest.live_bytes(i + 1) as f64 / 1e3),
            shapes.join(" "),
        ]);
    }
    let mut text = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = rows.iter().map(|r| r[column].len()).max().unwrap_or(0);
            // Writing to a String cannot fail.
            let _ = write!(text, "{cell:>width$}  ");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    if manifest
        .blocks
        .first()
        .is_some_and(|block| !block.kind.is_torch_script())
    {
        let sent = manifest.live_bytes(0) as f64 / 1e3;
        // Writing to a String cannot fail.
        let _ = writeln!(text, "block 0 prepares the inputs: {sent:.1} KB come in");
    }
    for exit in &manifest.exits {
        text += &exit_line(exit);
    }
    text + &summary(manifest)
}

/// `exit aux1 behind block 5: output0, leave at confidence >= 0.800 (32.0 %)`.
fn exit_line(exit: &Exit) -> String {
    let sign = match exit.criterion {
        ExitCriterion::Confidence => "confidence >=",
        ExitCriterion::Entropy => "entropy <=",
    };
    let rule = match exit.threshold {
        Some(threshold) => format!("leave at {sign} {threshold:.3}"),
        None => "no threshold".to_owned(),
    };
    let rate = exit.expected.map_or_else(String::new, |share| {
        format!(" ({:.1} %)", share.exit_rate * 100.0)
    });
    let Exit {
        name,
        block,
        output,
        ..
    } = exit;
    format!("exit {name} behind block {block}: {output}, {rule}{rate}\n")
}

fn summary(manifest: &Manifest) -> String {
    let seconds: f64 = manifest.blocks.iter().map(|b| b.time.p50).sum();
    let blocks = manifest.blocks.len();
    let why = manifest.rung_reason.as_deref();
    format!(
        "{blocks} blocks, {}, {:.2} ms at {:.1} GFLOP/s, {}{}\n",
        cuts(manifest.rung),
        seconds * 1e3,
        manifest.prepared_gflops,
        manifest.runtime,
        why.map_or_else(String::new, |why| format!("; not cut better because {why}")),
    )
}

const fn cuts(rung: Rung) -> &'static str {
    match rung {
        Rung::Direct => "direct cuts",
        Rung::Typed => "typed cuts",
        Rung::Retraced => "cut after tracing again",
        Rung::Whole => "whole",
    }
}

fn shape(sizes: &[i64]) -> String {
    let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
    sizes.join("x")
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_model::ExitExpectation;

    #[test]
    fn an_exit_says_where_it_hangs_and_who_leaves() {
        let mut exit = Exit {
            name: "aux1".into(),
            block: 5,
            output: "output0".into(),
            within: None,
            criterion: ExitCriterion::Entropy,
            classes: 10,
            temperature: 1.0,
            threshold: Some(0.25),
            table: Vec::new(),
            expected: Some(ExitExpectation {
                exit_rate: 0.32,
                accuracy: Some(0.9),
                accuracy_alone: 0.8,
            }),
        };
        assert_eq!(
            exit_line(&exit),
            "exit aux1 behind block 5: output0, leave at entropy <= 0.250 (32.0 %)\n"
        );
        exit.threshold = None;
        exit.expected = None;
        assert_eq!(
            exit_line(&exit),
            "exit aux1 behind block 5: output0, no threshold\n"
        );
    }
}
