//! A model's own answers, from libtorch's interpreter alone.

use lamina_model::{DataType, Tensor};
use std::path::Path;
use tch::{CModule, IValue, Kind};

/// The file's answer, flattened; the reason if it throws.
pub(crate) fn answer(path: &Path, request: &[Tensor]) -> Result<Vec<Tensor>, String> {
    let module = CModule::load(path).unwrap();
    let inputs: Vec<IValue> = request
        .iter()
        .map(|t| IValue::Tensor(to_torch(t)))
        .collect();
    let _no_grad = tch::no_grad_guard();
    let value = module.forward_is(&inputs).map_err(|e| e.to_string())?;
    let mut tensors = Vec::new();
    flatten(&value, &mut tensors);
    Ok(tensors)
}

fn flatten(value: &IValue, tensors: &mut Vec<Tensor>) {
    match value {
        IValue::Tensor(tensor) => tensors.push(from_torch(tensor)),
        IValue::Tuple(items) | IValue::GenericList(items) => {
            items.iter().for_each(|item| flatten(item, tensors));
        }
        IValue::GenericDict(entries) => {
            entries.iter().for_each(|(_, item)| flatten(item, tensors));
        }
        IValue::Int(number) => tensors.push(Tensor {
            datatype: DataType::Int64,
            shape: vec![1],
            data: number.to_le_bytes().to_vec().into(),
        }),
        IValue::TensorList(items) => tensors.extend(items.iter().map(from_torch)),
        IValue::None => {}
        other => panic!("{other:?} in an answer"),
    }
}

fn to_torch(tensor: &Tensor) -> tch::Tensor {
    let kind = match tensor.datatype {
        DataType::Fp32 => Kind::Float,
        DataType::Bool => Kind::Bool,
        DataType::Int64 => Kind::Int64,
        other => panic!("{other}"),
    };
    tch::Tensor::from_data_size(&tensor.data, &tensor.shape, kind)
}

fn from_torch(tensor: &tch::Tensor) -> Tensor {
    let tensor = tensor.contiguous();
    let (datatype, size) = match tensor.kind() {
        Kind::Float => (DataType::Fp32, 4),
        Kind::Bool => (DataType::Bool, 1),
        Kind::Int64 => (DataType::Int64, 8),
        other => panic!("{other:?}"),
    };
    let elements = tensor.numel();
    let mut data = vec![0; elements * size];
    tensor.copy_data_u8(&mut data, elements);
    Tensor {
        datatype,
        shape: tensor.size(),
        data: data.into(),
    }
}
