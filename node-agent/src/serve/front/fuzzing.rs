//! Entry points for `fuzz/`.

use super::input::read as read_inputs;
use crate::serve::routes::Signature;
use lamina_model::{DataType, ValueSpec};
use lamina_proto::inference::ModelInferRequest;

/// Reads inputs for a model that has one of each datatype, named after it.
pub(crate) fn read(request: &ModelInferRequest) {
    let input = |datatype: DataType| ValueSpec {
        name: datatype.to_string(),
        datatype,
        shape: vec![-1, 2],
        sizes: Vec::new(),
    };
    let inputs: Vec<ValueSpec> = DataType::ALL.into_iter().map(input).collect();
    // Models with one of them each, so that one good input is a good request.
    for input in inputs {
        let signature = Signature {
            revision: 1,
            inputs: vec![input.clone()],
            outputs: vec![input],
            exits: None,
            manifest: String::new(),
        };
        let _ = read_inputs("default/m", &signature, None, None, request);
    }
}
