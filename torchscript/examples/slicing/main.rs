//! Measures the cost of slicing: `cargo xtask bench slicing`.
//!
//! For each model, on one thread and in one process: the whole model in libtorch's
//! own ways, all blocks merged into one slice as in agents, and the blocks as a
//! chain of slices; then the manifest's prediction for random cuts against the
//! measured slices. Variants take turns, so that a change of the host's speed
//! affects all of them.

mod memory;
mod report;
mod rounds;
mod splits;
mod variants;

use anyhow::{Context as _, Result};
use clap::Parser;
use lamina_model::{DataType, InputSpec, Manifest, ValueSpec};
use lamina_torchscript::{PrepareOptions, prepare, reference_speed, set_threads};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// As in `lamina-node-agent prepare`.
const TIMING_RUNS: u32 = 20;
const PROFILE_BUDGET: Duration = Duration::from_secs(30);

#[derive(Parser)]
struct Args {
    /// TorchScript files that take one image of 224 x 224 pixels.
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// Turns of each variant.
    #[arg(long, default_value_t = 25)]
    rounds: usize,
    /// Number of random cuts into two, and into three slices.
    #[arg(long, default_value_t = 5)]
    splits: usize,
    /// Print JSON instead of the page.
    #[arg(long)]
    json: bool,
    /// Today, for the page.
    #[arg(long, default_value = "")]
    date: String,
    /// Only load this variant of the first model and print its cost; used internally.
    #[arg(long, hide = true, requires = "blocks")]
    load: Option<variants::Variant>,
    /// Folder with the prepared model, for `--load`.
    #[arg(long, hide = true)]
    blocks: Option<PathBuf>,
}

/// All measurements of one model.
#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) model: String,
    pub(crate) blocks: usize,
    pub(crate) prepare_seconds: f64,
    pub(crate) variants: Vec<rounds::Times>,
    pub(crate) loads: Vec<memory::Load>,
    pub(crate) cuts: Vec<report::Cut>,
    pub(crate) slices: Vec<splits::Slice>,
}

fn main() -> Result<()> {
    let args = Args::parse();
    set_threads(1);
    if let (Some(variant), Some(blocks)) = (args.load, &args.blocks) {
        return memory::child(&args.models[0], blocks, variant);
    }
    let mut all = Vec::new();
    let mut runtime = String::new();
    for model in &args.models {
        let folder = std::env::temp_dir().join(format!("lamina-bench-{}", std::process::id()));
        let measured = measure(model, &folder, &args, &mut runtime);
        fs::remove_dir_all(&folder).with_context(|| format!("{}", folder.display()))?;
        all.push(measured?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print!("{}", report::page(&all, &runtime, &args.date, args.rounds));
    }
    Ok(())
}

fn measure(model: &Path, folder: &Path, args: &Args, runtime: &mut String) -> Result<Measured> {
    let name = model.file_stem().unwrap_or_default().to_string_lossy();
    let name = name.trim_end_matches("-traced").to_owned();
    eprintln!("{name}: preparing");
    let start = Instant::now();
    let manifest = prepared(model, folder)?;
    let prepare_seconds = start.elapsed().as_secs_f64();
    fs::write(folder.join("manifest.json"), serde_json::to_vec(&manifest)?)?;
    runtime.clone_from(&manifest.runtime);
    eprintln!("{name}: memory");
    let loads = memory::loads(model, folder)?;
    eprintln!("{name}: turns");
    let variants = rounds::measure(model, folder, &manifest, args.rounds)?;
    eprintln!("{name}: cuts");
    let slices = splits::measure(folder, &manifest, args.splits, args.rounds)?;
    Ok(Measured {
        model: name,
        blocks: manifest.blocks.len(),
        prepare_seconds,
        variants,
        loads,
        cuts: report::cuts(&manifest),
        slices,
    })
}

fn prepared(model: &Path, folder: &Path) -> Result<Manifest> {
    let options = PrepareOptions {
        inputs: vec![InputSpec {
            value: ValueSpec {
                name: "image".into(),
                datatype: DataType::Fp32,
                shape: vec![-1, 3, 224, 224],
                sizes: Vec::new(),
            },
            range: None,
        }],
        fixed: Vec::new(),
        samples: Vec::new(),
        known: Default::default(),
        timing_runs: TIMING_RUNS,
        profile_budget: PROFILE_BUDGET,
        prepared_gflops: reference_speed(Duration::from_millis(500)).peak_gflops,
        seed: 1,
    };
    Ok(prepare(model, folder, &options, &mut |_| ())?)
}
