use super::*;
use crate::tests::{manifest, value};
use lamina_model::EncodingErrors;
use std::collections::BTreeMap;

/// Two blocks with inputs of 40 kB and 20 kB.
fn measured() -> Manifest {
    let mut manifest = manifest();
    manifest.inputs = vec![value("image", 10_000)];
    manifest.blocks[0].outputs = vec![value("features", 5_000)];
    manifest.encoding_errors = vec![
        EncodingErrors {
            fp16: Some(0.0001),
            bf16: Some(0.002),
            int8: Some(0.004),
        },
        EncodingErrors {
            fp16: None,
            bf16: Some(0.003),
            int8: Some(0.2),
        },
    ];
    manifest
}

fn asked(dtype: Option<WireType>, max_error: Option<f64>) -> Activations {
    Activations { dtype, max_error }
}

fn chosen(boundary: usize, asked: Activations) -> Result<(WireType, u64), String> {
    let crossing = crossing(&measured(), boundary, &asked, |_| true);
    assert_eq!(
        crossing.dtype.is_none(),
        crossing.bytes == crossing.raw_bytes
    );
    assert_eq!(crossing.dtype.is_none(), !crossing.reason.is_empty());
    let bytes = crossing.bytes;
    crossing.dtype.map(|d| (d, bytes)).ok_or(crossing.reason)
}

#[test]
fn one_type_is_taken_where_it_was_measured_and_is_allowed() {
    let fixed = |dtype, most| asked(Some(dtype), most);
    assert_eq!(
        chosen(0, fixed(WireType::Int8, None)),
        Ok((WireType::Int8, 10_000))
    );
    assert_eq!(
        chosen(1, fixed(WireType::Int8, None)),
        Ok((WireType::Int8, 5_000))
    );
    assert_eq!(
        chosen(0, fixed(WireType::Bf16, Some(0.002))),
        Ok((WireType::Bf16, 20_000))
    );
    let refused = chosen(1, fixed(WireType::Int8, Some(0.01))).unwrap_err();
    assert_eq!(refused, "int8 changes answers by 20.0 %, more than 1.0 %");
    let refused = chosen(1, fixed(WireType::Fp16, None)).unwrap_err();
    assert!(
        refused.starts_with("what fp16 changes here was not measured"),
        "{refused}"
    );
}

#[test]
fn auto_takes_the_fewest_bits_that_are_allowed() {
    let auto = |most| asked(None, Some(most));
    assert_eq!(chosen(0, auto(0.01)), Ok((WireType::Int8, 10_000)));
    assert_eq!(chosen(0, auto(0.003)), Ok((WireType::Fp16, 20_000)));
    assert_eq!(chosen(1, auto(0.01)), Ok((WireType::Bf16, 10_000)));
    let refused = chosen(1, auto(0.0005)).unwrap_err();
    assert_eq!(
        refused,
        "int8 changes answers by 20.0 %, bf16 changes answers by 0.30 %, more than 0.050 %"
    );
}

#[test]
fn nothing_is_sent_that_an_agent_does_not_know() {
    let int8 = asked(Some(WireType::Int8), None);
    let crossing = |knows: fn(WireType) -> bool| crossing(&measured(), 0, &int8, knows);
    assert_eq!(
        crossing(|d| d == WireType::Int8).dtype,
        Some(WireType::Int8)
    );
    let none = crossing(|d| d == WireType::Fp16);
    assert_eq!(none.dtype, None);
    assert!(none.reason.contains("does not know"), "{}", none.reason);
}

#[test]
fn a_manifest_without_errors_and_small_values_go_as_they_are() {
    let mut manifest = measured();
    let int8 = asked(Some(WireType::Int8), None);
    manifest.encoding_errors.clear();
    assert_eq!(crossing(&manifest, 0, &int8, |_| true).dtype, None);
    manifest = measured();
    manifest.inputs = vec![value("image", 100)];
    let small = crossing(&manifest, 0, &int8, |_| true);
    assert_eq!((small.dtype, small.bytes), (None, 400));
}

/// Bytes at each cut, summed as by strategies.
fn at_cuts(workload: &Workload, manifest: &Manifest) -> Vec<u64> {
    let size = |name: &String| {
        let mut values = workload.values.iter();
        values.find(|v| v.name == *name).unwrap().bytes
    };
    let blocks = 0..manifest.blocks.len();
    let sums = blocks.map(|b| workload.blocks[b].inputs.iter().map(size).sum());
    sums.collect()
}

#[test]
fn a_workload_has_the_bytes_of_each_crossing() {
    let mut manifest = measured();
    // The output of an exit, which passes through the second block.
    manifest.blocks[0].outputs.push(value("side", 300));
    manifest.blocks[1].inputs.push("side".into());
    manifest.blocks[1].outputs = vec![value("side", 300), value("scores", 10)];
    manifest.outputs.insert(0, value("side", 300));
    manifest.validate().unwrap();
    let raw = crate::workload(&manifest, "m", "cam", &BTreeMap::new());
    let mut same = raw.clone();
    let as_asked = |asked: Activations| -> Vec<Crossing> {
        (0..2)
            .map(|b| crossing(&manifest, b, &asked, |_| true))
            .collect()
    };
    encode(&mut same, &manifest, &as_asked(asked(None, Some(1e-9))));
    assert_eq!(same, raw);
    let mut workload = raw;
    let crossings = as_asked(asked(Some(WireType::Int8), None));
    encode(&mut workload, &manifest, &crossings);
    assert_eq!(at_cuts(&workload, &manifest), [10_000, 5_000 + 1_200]);
    assert_eq!(workload.blocks[1].outputs, ["scores"]);
    assert_eq!(workload.outputs, ["side", "scores"]);
    let problem = lamina_placement::Problem {
        nodes: vec![lamina_placement::Node::new(
            "cam",
            lamina_placement::Tier::Device,
            1 << 30,
        )],
        workloads: vec![workload],
        ..lamina_placement::Problem::default()
    };
    lamina_placement::validate(&problem).unwrap();
}

#[test]
fn shares_are_told_with_two_digits() {
    let told = [0.2, 0.0125, 0.0034, 0.000_05, 0.0].map(percent);
    assert_eq!(told, ["20.0 %", "1.2 %", "0.34 %", "0.0050 %", "0.0 %"]);
}
