use super::*;
use crate::serve::engine::fake::{floats, fp32};
use crate::serve::hop::{bytes_of, from_wire, to_wire as raw};

const TYPES: [lamina_crds::WireType; 3] = [
    lamina_crds::WireType::Fp16,
    lamina_crds::WireType::Bf16,
    lamina_crds::WireType::Int8,
];

fn encoding(dtype: lamina_crds::WireType) -> Encoding {
    Encoding {
        dtype,
        values: vec!["x".into()],
    }
}

fn value(name: &str, values: &[f32]) -> WireTensor {
    raw(name, fp32(&[1, values.len() as i64], values))
}

async fn there_and_back(dtype: lamina_crds::WireType, tensors: Vec<WireTensor>) -> Vec<Vec<f32>> {
    let (sent, _) = encoded(tensors, Some(&encoding(dtype))).await;
    let arrived = decoded(sent).await.unwrap();
    let values = arrived.iter().map(|t| floats(&from_wire(t).unwrap()));
    values.collect()
}

#[tokio::test]
async fn the_named_values_go_in_fewer_bytes_and_the_others_as_they_are() {
    let tensors = || vec![value("x", &[0.0, 0.1, 255.0]), value("side", &[0.1, 0.2])];
    for (dtype, bytes) in TYPES.into_iter().zip([6, 6, 3]) {
        let (sent, told) = encoded(tensors(), Some(&encoding(dtype))).await;
        assert_eq!(bytes_of(&sent), bytes + 8);
        assert_eq!(told.len(), 1);
        assert!(told[0].is_some());
        assert_eq!(sent[1], tensors()[1]);
        let arrived = there_and_back(dtype, tensors()).await;
        assert!((arrived[0][1] - 0.1).abs() < 0.5, "{arrived:?}");
        assert_eq!(arrived[1], [0.1, 0.2]);
    }
    let (sent, told) = encoded(tensors(), None).await;
    assert_eq!((sent, told), (tensors(), Vec::new()));
}

#[tokio::test]
async fn large_values_are_encoded_too() {
    let values: Vec<f32> = (0..400_000).map(|v| (v % 256) as f32).collect();
    for dtype in TYPES {
        let arrived = there_and_back(dtype, vec![value("x", &values)]).await;
        assert_eq!(arrived[0], values);
    }
}

#[tokio::test]
async fn what_fewer_bits_do_not_hold_goes_as_it_is_and_is_told() {
    for dtype in TYPES {
        let odd = vec![value("x", &[1.0, f32::NAN])];
        let (sent, told) = encoded(odd.clone(), Some(&encoding(dtype))).await;
        assert_eq!(sent[0].data, odd[0].data);
        assert_eq!(told, [None]);
    }
    // Not floats, despite the name.
    let label = WireTensor {
        datatype: "INT32".into(),
        ..value("x", &[1.0])
    };
    let (sent, told) = encoded(vec![label.clone()], Some(&encoding(TYPES[2]))).await;
    assert_eq!((sent, told), (vec![label], Vec::new()));
}

#[tokio::test]
async fn nonsense_is_refused_by_name() {
    let (sent, _) = encoded(vec![value("x", &[1.0, 2.0])], Some(&encoding(TYPES[2]))).await;
    let good = &sent[0];
    let refused = async |tensor: WireTensor| decoded(vec![tensor]).await.unwrap_err().to_string();
    let longer = WireTensor {
        shape: vec![1, 1 << 40],
        ..good.clone()
    };
    let said = refused(longer).await;
    assert!(said.contains("`x`: 2 bytes of int8"), "{said}");
    let wrong = "tensor `x` has an encoding that this version does not know";
    for tensor in [
        WireTensor {
            shape: vec![i64::MAX, 8],
            ..good.clone()
        },
        WireTensor {
            datatype: "INT64".into(),
            ..good.clone()
        },
        WireTensor {
            data: vec![1].into(),
            ..good.clone()
        },
        WireTensor {
            encoded: Some(WireEncoded { values: None }),
            ..good.clone()
        },
    ] {
        assert!(refused(tensor).await.starts_with(wrong));
    }
    let infinite = Values::Int8(Int8 {
        steps: vec![1, 2].into(),
        scale: f32::INFINITY,
        offset: 0.0,
    });
    let said = refused(WireTensor {
        encoded: Some(WireEncoded {
            values: Some(infinite),
        }),
        ..good.clone()
    });
    assert!(said.await.contains("no numbers"));
}
