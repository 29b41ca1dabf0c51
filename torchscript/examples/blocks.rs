//! Prepares a model and prints its blocks: `blocks MODEL OUT_DIR [SIZE]`.

use lamina_model::{DataType, InputSpec, ValueSpec};
use lamina_torchscript::{
    LoadOptions, PrepareOptions, Slice, prepare, reference_speed, set_threads,
};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, out, ..] = args.as_slice() else {
        return Err("usage: blocks MODEL OUT_DIR [SIZE]".into());
    };
    let size = args.get(3).map_or(Ok(224), |s| s.parse())?;
    set_threads(1);
    let options = PrepareOptions {
        inputs: vec![InputSpec {
            value: ValueSpec {
                name: "image".into(),
                datatype: DataType::Fp32,
                shape: vec![-1, 3, size, size],
                sizes: Vec::new(),
            },
            range: None,
        }],
        fixed: Vec::new(),
        samples: Vec::new(),
        known: Default::default(),
        timing_runs: 10,
        profile_budget: Duration::from_secs(15),
        prepared_gflops: reference_speed(Duration::from_millis(500)).peak_gflops,
        seed: 1,
    };
    let start = Instant::now();
    let mut last = String::new();
    let manifest = prepare(Path::new(model), Path::new(out), &options, &mut |p| {
        let name = format!("{p:?}");
        let step = name.split(' ').next().unwrap_or_default().to_owned();
        if step != last {
            eprintln!("{:6.2} s {step}", start.elapsed().as_secs_f64());
            last = step;
        }
    })?;
    eprintln!("{:6.2} s done", start.elapsed().as_secs_f64());
    manifest.validate()?;
    println!(
        "| block | MFLOP | ms | cut penalty ms | weights KB | out KB | peak act KB | out shape |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (i, b) in manifest.blocks.iter().enumerate() {
        println!(
            "| {i} | {:.1} | {:.2} | {:.2} | {:.0} | {:.0} | {:.0} | {:?} |",
            b.flops as f64 / 1e6,
            b.time.p50 * 1e3,
            b.cut_penalty_seconds * 1e3,
            b.weight_bytes as f64 / 1e3,
            manifest.live_bytes(i + 1) as f64 / 1e3,
            b.peak_activation_bytes as f64 / 1e3,
            b.outputs[0].shape,
        );
    }
    println!(
        "{:?} {:?} {:?} {:.1} GFLOP/s",
        manifest.rung, manifest.rung_reason, manifest.check, manifest.prepared_gflops
    );
    let files: Vec<PathBuf> = manifest
        .blocks
        .iter()
        .map(|b| Path::new(out).join(format!("{}.pt", b.digest)))
        .collect();
    for optimize in [false, true] {
        let (_, report) = Slice::load(
            &files,
            &manifest.inputs,
            &LoadOptions {
                threads: 1,
                lanes: 1,
                optimize,
                warmup_runs: 3,
            },
        )?;
        println!("optimize {optimize}: {report:?}");
    }
    Ok(())
}
