//! Errors of encoded activations, as recorded in the manifest.

use crate::common::*;
use crate::vision_models::mobilenet;
use lamina_model::wire::encode;
use lamina_model::{DataType, Tensor, WireType};

fn sent(tensor: &Tensor, dtype: WireType) -> Tensor {
    let encoded = encode(dtype, &tensor.data).unwrap();
    Tensor {
        data: encoded.decode(tensor.data.len() as u64).unwrap(),
        ..tensor.clone()
    }
}

#[test]
fn the_manifest_says_what_encoding_changes_at_a_cut() {
    let p = mobilenet();
    let errors = &p.manifest.encoding_errors;
    let blocks = p.manifest.blocks.len();
    assert_eq!(errors.len(), blocks);
    let probe = p.probe();
    let answers = floats(&probe.outputs[0]);
    let magnitude = answers.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
    // Cuts with small activations are measured first.
    for cut in [blocks - 4, blocks - 2] {
        let crossing = p.slice(0, cut, false).0.run(&probe.inputs).unwrap();
        for dtype in WireType::ALL {
            let told = errors[cut].of(dtype).unwrap();
            let arrived: Vec<Tensor> = crossing.iter().map(|t| sent(t, dtype)).collect();
            let got = p.slice(cut, blocks, false).0.run(&arrived).unwrap();
            let seen = difference(&got, &probe.outputs) / magnitude;
            // The larger error of two requests.
            assert!(
                seen > 0.0 && f64::from(seen) <= told * 1.001,
                "{cut} {dtype}: {seen} {told}"
            );
            assert!(told < 0.2, "{cut} {dtype}: {told}");
        }
        assert!(errors[cut].fp16 < errors[cut].bf16, "{:?}", errors[cut]);
    }
}

#[test]
fn what_cannot_be_encoded_has_no_error() {
    // Its values are a few bytes.
    let p = prepared("in_place", &row());
    assert!(
        p.manifest
            .encoding_errors
            .iter()
            .all(|e| *e == Default::default())
    );
    let inputs = &p.manifest.inputs;
    assert!(inputs.iter().all(|v| v.datatype == DataType::Fp32));
}
