use super::*;
use lamina_model::{BoundaryCheck, DataType, Digest, MANIFEST_VERSION, Rung, Seconds, ValueSpec};

fn value(name: &str, elements: i64) -> ValueSpec {
    ValueSpec {
        name: name.into(),
        datatype: DataType::Fp32,
        shape: vec![-1, elements],
    }
}

/// Two blocks of 10 and 20 ms at 8 GFLOP/s.
fn manifest() -> Manifest {
    let digest = Digest::of(b"block");
    let block = |seconds: f64, input: &str, output: ValueSpec| Block {
        digest: digest.clone(),
        file_bytes: 1000,
        weight_bytes: 600,
        peak_activation_bytes: 40,
        flops: 7,
        time: Seconds {
            p50: seconds,
            p10: seconds,
            p90: seconds,
        },
        cut_penalty_seconds: 0.001,
        inputs: vec![input.into()],
        outputs: vec![output],
    };
    Manifest {
        version: MANIFEST_VERSION,
        source: digest.clone(),
        runtime: "libtorch".into(),
        rung: Rung::Direct,
        rung_reason: None,
        inputs: vec![value("image", 100)],
        outputs: vec![value("scores", 10)],
        output_structure: None,
        exits: Vec::new(),
        blocks: vec![
            block(0.01, "image", value("features", 50)),
            block(0.02, "features", value("scores", 10)),
        ],
        probe: digest.clone(),
        probe_bytes: 1,
        check: BoundaryCheck {
            compared: 2,
            max_abs_diff: 0.0,
            telling_diff: 1.0,
        },
        prepared_gflops: 8.0,
        weight_bytes: None,
        lopsided_share: None,
    }
}

#[test]
fn times_follow_the_benchmark_and_bytes_the_shapes() {
    let manifest = manifest();
    let factors = BTreeMap::from([("edge".to_owned(), time_factor(&manifest, 2.0))]);
    let workload = workload(&manifest, "model", "cam", &factors);
    let cost = workload.blocks[1].costs["edge"];
    assert_eq!((cost.seconds, cost.cut_penalty_seconds), (0.08, 0.004));
    let bytes: Vec<u64> = workload.values.iter().map(|v| v.bytes).collect();
    assert_eq!(bytes, [400, 200, 40]);
    let block = &workload.blocks[0];
    assert_eq!((block.memory_bytes, block.slice_bytes), (1240, 600));
    assert_eq!(workload.outputs, ["scores"]);
}

#[test]
fn an_unknown_speed_leaves_times_as_they_are() {
    let mut manifest = manifest();
    assert_eq!(time_factor(&manifest, 0.0), 1.0);
    manifest.prepared_gflops = 0.0;
    assert_eq!(time_factor(&manifest, 4.0), 1.0);
}

#[test]
fn what_passes_through_a_block_is_given_once() {
    let mut manifest = manifest();
    // The second block needs the image too, so it passes through the first one.
    manifest.blocks[0].outputs.push(value("image", 100));
    manifest.blocks[1].inputs.push("image".into());
    let workload = workload(&manifest, "model", "cam", &BTreeMap::new());
    assert_eq!(workload.blocks[0].outputs, ["features"]);
    assert_eq!(workload.blocks[1].inputs, ["features", "image"]);
    let names: Vec<&str> = workload.values.iter().map(|v| v.name.as_str()).collect();
    assert_eq!(names, ["image", "features", "scores"]);
}
