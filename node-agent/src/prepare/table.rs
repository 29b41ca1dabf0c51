//! A manifest for people.

use lamina_model::Manifest;
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

/// One line per block and one about the whole.
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
    text + &summary(manifest)
}

fn summary(manifest: &Manifest) -> String {
    let seconds: f64 = manifest.blocks.iter().map(|b| b.time.p50).sum();
    let blocks = manifest.blocks.len();
    let why = manifest.rung_reason.as_deref();
    format!(
        "{blocks} blocks, {:.2} ms at {:.1} GFLOP/s, {}{}\n",
        seconds * 1e3,
        manifest.prepared_gflops,
        manifest.runtime,
        why.map_or_else(String::new, |why| format!("; not cut better because {why}")),
    )
}

fn shape(sizes: &[i64]) -> String {
    let sizes: Vec<String> = sizes.iter().map(ToString::to_string).collect();
    sizes.join("x")
}
