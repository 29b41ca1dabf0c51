//! A model's configuration, in the form that benchmark clients read. Pure.

use super::service::SERVER_NAME;
use lamina_proto::inference::model_metadata_response::TensorMetadata;
use lamina_proto::inference::{
    DataType, ModelConfig, ModelInput, ModelMetadataResponse, ModelOutput,
};

/// Batches are dimensions like any other here, so there is no `max_batch_size`.
pub(super) fn config(model: ModelMetadataResponse) -> ModelConfig {
    let input = |tensor: TensorMetadata| ModelInput {
        data_type: data_type(&tensor).into(),
        name: tensor.name,
        dims: tensor.shape,
    };
    let output = |tensor: TensorMetadata| ModelOutput {
        data_type: data_type(&tensor).into(),
        name: tensor.name,
        dims: tensor.shape,
    };
    ModelConfig {
        name: model.name,
        platform: model.platform,
        max_batch_size: 0,
        input: model.inputs.into_iter().map(input).collect(),
        output: model.outputs.into_iter().map(output).collect(),
        backend: SERVER_NAME.to_owned(),
    }
}

fn data_type(tensor: &TensorMetadata) -> DataType {
    // There it is called as it was before it could hold more than text.
    let name = match tensor.datatype.as_str() {
        "BYTES" => "TYPE_STRING".to_owned(),
        name => format!("TYPE_{name}"),
    };
    DataType::from_str_name(&name).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_datatype_has_its_number() {
        let plain = lamina_model::DataType::ALL.map(lamina_model::DataType::as_str);
        for datatype in plain.into_iter().chain(["BYTES"]) {
            let tensor = TensorMetadata {
                datatype: datatype.to_owned(),
                ..TensorMetadata::default()
            };
            assert_ne!(data_type(&tensor), DataType::TypeInvalid, "{datatype}");
        }
    }
}
