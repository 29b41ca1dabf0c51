use super::*;

fn value(name: &str, shape: &[i64]) -> ValueSpec {
    ValueSpec {
        name: name.into(),
        datatype: DataType::Fp32,
        shape: shape.to_vec(),
        sizes: Vec::new(),
    }
}

fn block(inputs: &[&str], outputs: Vec<ValueSpec>) -> Block {
    Block {
        kind: BlockKind::TorchScript,
        digest: Digest::of(inputs.join(",").as_bytes()),
        file_bytes: 10,
        weight_bytes: 8,
        peak_activation_bytes: 4,
        flops: 100,
        time: Seconds {
            p50: 0.01,
            p10: 0.01,
            p90: 0.02,
        },
        cut_penalty_seconds: 0.0,
        inputs: inputs.iter().map(ToString::to_string).collect(),
        outputs,
    }
}

/// x → a → b, where a passes through the second block to the third.
fn manifest() -> Manifest {
    Manifest {
        version: MANIFEST_VERSION,
        source: Digest::of(b"source"),
        runtime: "libtorch 2.13.0".into(),
        rung: Rung::Direct,
        rung_reason: None,
        inputs: vec![value("x", &[-1, 3])],
        outputs: vec![value("y", &[-1, 1])],
        arguments: Vec::new(),
        output_structure: Some(OutputStructure::Value {
            name: "y".into(),
            of: ValueKind::Tensor,
        }),
        exits: Vec::new(),
        blocks: vec![
            block(&["x"], vec![value("a", &[-1, 5])]),
            block(&["a"], vec![value("a", &[-1, 5]), value("b", &[-1, 2])]),
            block(&["a", "b"], vec![value("y", &[-1, 1])]),
        ],
        probe: Digest::of(b"probe"),
        probe_bytes: 5,
        check: BoundaryCheck {
            compared: 3,
            max_abs_diff: 0.0,
            telling_diff: 1.0,
            sizes: std::collections::BTreeMap::new(),
        },
        prepared_gflops: 10.0,
        weight_bytes: None,
        lopsided_share: None,
        rows_are_independent: None,
        encoding_errors: Vec::new(),
    }
}

#[test]
fn live_values_cross_every_boundary_up_to_their_last_use() {
    let m = manifest();
    let names = |b| -> Vec<&str> { m.live_at(b).iter().map(|v| v.name.as_str()).collect() };
    assert_eq!(names(0), ["x"]);
    assert_eq!(names(1), ["a"]);
    assert_eq!(names(2), ["a", "b"]);
    assert_eq!(names(3), ["y"]);
    assert_eq!(m.live_bytes(2), 28);
}

#[test]
fn a_manifest_without_the_structure_of_its_outputs_is_read() {
    let mut json = serde_json::to_value(manifest()).unwrap();
    let object = json.as_object_mut().unwrap();
    assert!(object.remove("outputStructure").is_some());
    let read: Manifest = serde_json::from_value(json).unwrap();
    assert_eq!(read.output_structure, None);
    assert_eq!(read.validate(), Ok(()));
}

#[test]
fn a_manifest_survives_json() {
    let m = manifest();
    let json = serde_json::to_string(&m).unwrap();
    assert_eq!(serde_json::from_str::<Manifest>(&json).unwrap(), m);
    assert_eq!(m.validate(), Ok(()));
}

#[test]
fn contradictions_are_named() {
    let mut m = manifest();
    m.blocks[1].inputs = vec!["nowhere".into()];
    let err = m.validate().unwrap_err().to_string();
    assert_eq!(
        err,
        "block 1 takes `nowhere`, but what comes before it gives `a`"
    );

    let mut m = manifest();
    m.blocks[1].outputs[1].name = "a".into();
    assert_eq!(m.validate(), Err(ManifestError::Twice("a".into())));

    let mut m = manifest();
    m.blocks[2].time.p50 = f64::NAN;
    assert!(matches!(
        m.validate(),
        Err(ManifestError::Time { block: 2, .. })
    ));

    let mut m = manifest();
    m.version = 3;
    assert_eq!(m.validate(), Err(ManifestError::Version(3)));

    let exit = |block, output: &str| Exit {
        name: "side".into(),
        block,
        output: output.into(),
        within: None,
        criterion: ExitCriterion::Confidence,
        classes: 2,
        temperature: 1.0,
        threshold: Some(0.9),
        table: Vec::new(),
        expected: None,
    };
    for (exit, fits) in [
        (exit(2, "y"), true),
        (exit(3, "y"), false),
        (exit(0, "z"), false),
    ] {
        let mut m = manifest();
        m.exits = vec![exit];
        assert_eq!(m.validate().is_ok(), fits, "{:?}", m.exits);
    }

    let mut m = manifest();
    m.blocks.clear();
    assert_eq!(m.validate(), Err(ManifestError::Empty));

    let mut m = manifest();
    m.blocks[0].outputs[0].shape = vec![i64::MAX, i64::MAX];
    assert_eq!(m.validate(), Err(ManifestError::Size("a".into())));
}

#[test]
fn a_manifest_is_no_larger_than_one_can_be() {
    let text = serde_json::to_string(&manifest()).unwrap();
    assert_eq!(Manifest::from_json(text.as_bytes()).unwrap(), manifest());
    let padded = |bytes: u64| {
        let mut padded = text.clone().into_bytes();
        padded.resize(usize::try_from(bytes).unwrap(), b' ');
        Manifest::from_json(&padded)
    };
    assert!(padded(MANIFEST_BYTES).is_ok());
    let too_large = Err(ManifestError::TooLarge(MANIFEST_BYTES + 1));
    assert_eq!(padded(MANIFEST_BYTES + 1), too_large);
    // Five million empty objects.
    let nothing = format!("[{}{{}}]", "{},".repeat(5_000_000));
    let greedy = text.replacen('{', &format!("{{\"encodingErrors\":{nothing},"), 1);
    let refused = Manifest::from_json(greedy.as_bytes())
        .unwrap_err()
        .to_string();
    assert!(refused.contains("a list of at most 65536"), "{refused}");
}
