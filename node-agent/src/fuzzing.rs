//! Entry points for untrusted bytes, as used by `fuzz/`: built only with the feature `fuzzing`.

use crate::serve::access::Keys;
use crate::serve::directory::Directory;
use crate::serve::exits::Rules;
use crate::serve::hop::{decode_all, from_wire};
use crate::serve::{front, guard, rest};
use bytes::Bytes;
use lamina_model::ValueSpec;
use lamina_proto::control::OperatorMessage;
use lamina_proto::control::operator_message::Message as FromOperator;
use lamina_proto::hop::ForwardRequest;
use lamina_proto::inference::ModelInferRequest;

/// The guard's estimate of the memory of a ModelInferRequest, and the name of its owner unless that
/// is longer than 512 bytes; `None` if it is refused.
pub fn weigh_infer(message: &[u8]) -> Option<(u64, Option<String>)> {
    guard::fuzzing::infer(message)
}

/// As [`weigh_infer`], of a ForwardRequest.
pub fn weigh_forward(message: &[u8]) -> Option<(u64, Option<String>)> {
    guard::fuzzing::forward(message)
}

/// Decompresses a message in two pieces; returns its size, if it is valid.
pub fn inflate(packed: &[u8], is_gzip: bool, cut: usize) -> Option<usize> {
    guard::fuzzing::inflate(packed, is_gzip, cut)
}

/// Reads a client's inputs for a model with one of each datatype.
pub fn read_inputs(request: &ModelInferRequest) {
    front::fuzzing::read(request);
}

/// Reads the body of an HTTP request, of which `header_length` bytes are JSON.
pub fn read_body(body: &Bytes, header_length: Option<usize>) {
    rest::fuzzing::read(body, header_length);
}

/// Reads another agent's tensors and exit rules; returns the size of the decoded tensors.
pub fn read_hop(request: &ForwardRequest) -> u64 {
    let _ = request.exits.as_ref().map(Rules::read);
    let Ok(tensors) = decode_all(request.tensors.clone()) else {
        return 0;
    };
    for wire in &tensors {
        let Ok(tensor) = from_wire(wire) else {
            continue;
        };
        let spec = ValueSpec {
            name: wire.name.clone(),
            datatype: tensor.datatype,
            shape: vec![-1, 2],
            sizes: Vec::new(),
        };
        let _ = tensor.check(&spec);
    }
    tensors.iter().map(|tensor| tensor.data.len() as u64).sum()
}

/// Handles an operator's message about models and keys.
pub fn hear_operator(message: OperatorMessage) {
    match message.message {
        Some(FromOperator::Directory(directory)) => Directory::default().apply(directory),
        Some(FromOperator::ApiKeys(keys)) => Keys::default().apply(keys),
        _ => {}
    }
}
