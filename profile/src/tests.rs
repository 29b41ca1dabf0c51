use super::*;
use lamina_model::{
    BlockKind, BoundaryCheck, DataType, Digest, MANIFEST_VERSION, Rung, Seconds, ValueSpec,
};

pub(crate) fn value(name: &str, elements: i64) -> ValueSpec {
    ValueSpec {
        name: name.into(),
        datatype: DataType::Fp32,
        shape: vec![-1, elements],
        sizes: Vec::new(),
    }
}

/// Two blocks of 10 and 20 ms at 8 GFLOP/s.
pub(crate) fn manifest() -> Manifest {
    let digest = Digest::of(b"block");
    let block = |seconds: f64, input: &str, output: ValueSpec| Block {
        kind: BlockKind::TorchScript,
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
        arguments: Vec::new(),
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
            sizes: std::collections::BTreeMap::new(),
        },
        prepared_gflops: 8.0,
        weight_bytes: None,
        lopsided_share: None,
        rows_are_independent: None,
        encoding_errors: Vec::new(),
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

/// Like [`manifest`], with an exit after each of its blocks.
fn with_exits(shares: [f64; 2]) -> Manifest {
    let mut manifest = manifest();
    let exit = |name: &str, block, share| lamina_model::Exit {
        name: name.into(),
        block,
        output: "scores".into(),
        within: None,
        criterion: lamina_model::ExitCriterion::Confidence,
        classes: 10,
        temperature: 1.0,
        threshold: (block == 0).then_some(0.9),
        table: [(0.9, 0.3), (0.5, 0.7)]
            .map(|(threshold, exit_rate)| lamina_model::ExitRow {
                threshold,
                exit_rate,
                accuracy: 0.8,
            })
            .into(),
        expected: Some(lamina_model::ExitExpectation {
            exit_rate: share,
            accuracy: Some(0.9),
            accuracy_alone: 0.8,
        }),
    };
    manifest.exits = vec![exit("side", 0, shares[0]), exit("final", 1, shares[1])];
    manifest
}

#[test]
fn shares_are_those_of_the_thresholds_in_force() {
    let manifest = with_exits([0.25, 0.75]);
    let shares = |t: Option<f64>| expected_shares(&manifest, |_| t);
    assert_eq!(shares(Some(0.9)), [0.25, 0.75]);
    let close = |got: Vec<f64>, want: [f64; 2]| {
        assert!(
            got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-12),
            "{got:?}"
        );
    };
    close(shares(Some(0.55)), [0.7, 0.3]);
    close(shares(None), [0.0, 1.0]);
    assert!(expected_shares(&super::tests::manifest(), |_| None).is_empty());
}

#[test]
fn a_strategy_chooses_among_what_was_measured() {
    let mut manifest = with_exits([0.3, 0.7]);
    let in_force = |threshold, is_fixed| {
        move |_: &lamina_model::Exit| InForce {
            threshold,
            is_fixed,
        }
    };
    let told = |found: &Choices| -> Vec<(f64, f64, f64)> {
        let points = found.exits[0].table.iter();
        let short = |x: f64| (x * 1e6).round() / 1e6;
        points
            .map(|p| (p.threshold, short(p.rate), short(p.accuracy)))
            .collect()
    };
    let found = choices(&manifest, &[0.3, 0.7], in_force(Some(0.9), false)).unwrap();
    // The thresholds in force, none, and the other row of the table.
    assert_eq!(
        told(&found),
        [(0.9, 0.3, 0.8), (1.0, 0.0, 1.0), (0.5, 0.7, 0.8)]
    );
    assert_eq!(found.final_accuracy, 0.8);
    assert_eq!(choosable(&manifest), ["side"]);
    // The entries' counts replace the rate of the thresholds in force.
    let seen = choices(&manifest, &[0.6, 0.4], in_force(Some(0.9), false)).unwrap();
    assert_eq!(told(&seen)[0], (0.9, 0.6, 0.8));
    let fixed = choices(&manifest, &[0.3, 0.7], in_force(Some(0.9), true)).unwrap();
    assert_eq!(told(&fixed).len(), 1);
    let nobody = choices(&manifest, &[0.0, 1.0], in_force(None, false)).unwrap();
    assert_eq!(told(&nobody)[0], (1.0, 0.0, 1.0));
    assert_eq!(told(&nobody).len(), 3);
    // The rows that reach the end, seven tenths, are right less often than all were: their loss is
    // charged to the rows that left.
    manifest.exits[1].expected.as_mut().unwrap().accuracy = Some(0.74);
    let harder = choices(&manifest, &[0.3, 0.7], in_force(Some(0.9), false)).unwrap();
    assert_eq!(told(&harder)[0], (0.9, 0.3, 0.66));
    let together = 0.3 * 0.66 + 0.7 * harder.final_accuracy;
    assert!((together - (0.3 * 0.8 + 0.7 * 0.74)).abs() < 1e-9);
    manifest.exits[0].table.clear();
    assert_eq!(
        choices(&manifest, &[0.3, 0.7], in_force(Some(0.9), false)),
        None
    );
}

#[test]
fn later_exits_are_reckoned_for_those_who_reach_them() {
    let mut manifest = with_exits([0.3, 0.7]);
    let block = manifest.blocks[1].clone();
    manifest.blocks.push(block);
    let mut second = manifest.exits[0].clone();
    second.name = "second".into();
    second.block = 1;
    second.table[0].exit_rate = 0.5;
    second.table[0].accuracy = 0.9;
    manifest.exits.insert(1, second);
    manifest.exits[2].block = 2;
    let in_force = |_: &lamina_model::Exit| InForce {
        threshold: Some(0.9),
        is_fixed: false,
    };
    let found = choices(&manifest, &[0.3, 0.2, 0.5], in_force).unwrap();
    assert_eq!(choosable(&manifest), ["side", "second"]);
    let now = found.exits[1].table[0];
    // Two of the seven tenths that reach it leave; 0.45 - 0.24 of all are right there, more than
    // leave.
    assert!((now.rate - 0.2 / 0.7).abs() < 1e-9, "{now:?}");
    assert!((now.accuracy - 1.0).abs() < 1e-9, "{now:?}");
    let combinations: usize = found.exits.iter().map(|e| e.table.len()).product();
    assert!(combinations <= 256);
}

#[test]
fn long_tables_are_thinned() {
    let mut manifest = with_exits([0.3, 0.7]);
    let row = |at: u32| lamina_model::ExitRow {
        threshold: 1.0 - f64::from(at) / 1000.0,
        exit_rate: f64::from(at) / 1000.0,
        accuracy: 0.9,
    };
    manifest.exits[0].table = (0..1000).map(row).collect();
    let in_force = |_: &lamina_model::Exit| InForce {
        threshold: Some(0.7),
        is_fixed: false,
    };
    let found = choices(&manifest, &[0.3, 0.7], in_force).unwrap();
    let table = &found.exits[0].table;
    assert!((20..=32).contains(&table.len()), "{}", table.len());
    assert_eq!(table[0].threshold, 0.7);
    let most = table.iter().map(|p| p.rate).fold(0.0, f64::max);
    assert_eq!(most, 0.999);
}

#[test]
fn an_exit_lets_out_a_share_of_those_who_reach_it() {
    let mut manifest = with_exits([0.5, 0.5]);
    let table = |m: &Manifest, shares: &[f64]| {
        let exits = exits(m, shares);
        let one = |e: &lamina_placement::Exit| (e.after_block, e.table[0].rate);
        exits.iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(table(&manifest, &[0.5, 0.5]), [(0, 0.5)]);
    // Two at one block count as one; half of the remaining half leaves at the second.
    let second = manifest.exits[0].clone();
    manifest.exits.insert(1, second);
    assert_eq!(table(&manifest, &[0.5, 0.25, 0.25]), [(0, 0.75)]);
    assert_eq!(table(&manifest, &[]), []);
}
