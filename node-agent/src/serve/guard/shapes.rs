//! The structure of messages, as far as it costs memory. The fields are those of `proto/*.proto`.

/// A kind of message.
#[derive(Debug)]
pub(super) struct Shape {
    /// Memory of one message, without the contents of its fields.
    pub(super) bytes: u64,
    pub(super) fields: &'static [Field],
}

/// A field of a message.
#[derive(Debug)]
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) holds: Holds,
    /// How often it may occur, and its name for users.
    pub(super) most: Option<(u32, &'static str)>,
}

/// The contents of a field.
#[derive(Debug)]
pub(super) enum Holds {
    /// Bytes or text.
    Bytes,
    /// Numbers, with the memory per byte on the wire.
    Numbers(u64),
    Message(&'static Shape),
}

/// Memory of a field of bytes besides the bytes.
pub(super) const BYTES_OVERHEAD: u64 = 64;

const fn any(number: u32, holds: Holds) -> Field {
    Field {
        number,
        holds,
        most: None,
    }
}

const fn some(number: u32, holds: Holds, most: u32, name: &'static str) -> Field {
    Field {
        number,
        holds,
        most: Some((most, name)),
    }
}

/// `inference.ModelInferRequest`.
pub(super) static INFER: Shape = Shape {
    bytes: 512,
    fields: &[
        any(1, Holds::Bytes),
        any(2, Holds::Bytes),
        any(3, Holds::Bytes),
        some(4, Holds::Message(&PARAMETER), 64, "parameters"),
        some(5, Holds::Message(&INPUT), 256, "inputs"),
        some(6, Holds::Message(&OUTPUT), 256, "outputs"),
        some(7, Holds::Bytes, 256, "raw input contents"),
    ],
};

static INPUT: Shape = Shape {
    bytes: 640,
    fields: &[
        any(1, Holds::Bytes),
        any(2, Holds::Bytes),
        some(3, Holds::Numbers(8), 64, "dimensions of an input"),
        some(4, Holds::Message(&PARAMETER), 64, "parameters of an input"),
        any(5, Holds::Message(&CONTENTS)),
    ],
};

static OUTPUT: Shape = Shape {
    bytes: 256,
    fields: &[
        any(1, Holds::Bytes),
        some(2, Holds::Message(&PARAMETER), 64, "parameters of an output"),
    ],
};

/// An entry of a map.
static PARAMETER: Shape = Shape {
    bytes: 256,
    fields: &[any(1, Holds::Bytes), any(2, Holds::Message(&VALUE))],
};

static VALUE: Shape = Shape {
    bytes: 64,
    fields: &[any(3, Holds::Bytes)],
};

static CONTENTS: Shape = Shape {
    bytes: 384,
    fields: &[
        any(1, Holds::Numbers(1)),
        any(2, Holds::Numbers(4)),
        any(3, Holds::Numbers(8)),
        any(4, Holds::Numbers(4)),
        any(5, Holds::Numbers(8)),
        any(6, Holds::Numbers(1)),
        any(7, Holds::Numbers(1)),
        any(8, Holds::Bytes),
    ],
};

/// `lamina.hop.v1.ForwardRequest`.
pub(super) static FORWARD: Shape = Shape {
    bytes: 512,
    fields: &[
        any(1, Holds::Bytes),
        any(4, Holds::Bytes),
        any(5, Holds::Bytes),
        some(6, Holds::Message(&TENSOR), 1024, "tensors"),
        any(7, Holds::Message(&EXITS)),
    ],
};

static EXITS: Shape = Shape {
    bytes: 128,
    fields: &[some(1, Holds::Message(&EXIT), 64, "exits")],
};

static EXIT: Shape = Shape {
    bytes: 128,
    fields: &[any(1, Holds::Bytes)],
};

static TENSOR: Shape = Shape {
    bytes: 384,
    fields: &[
        any(1, Holds::Bytes),
        any(2, Holds::Bytes),
        some(3, Holds::Numbers(8), 64, "dimensions of a tensor"),
        any(4, Holds::Bytes),
        any(5, Holds::Message(&ENCODED)),
    ],
};

/// Its elements exist twice for a moment: as received, and as FP32.
static ENCODED: Shape = Shape {
    bytes: 192,
    fields: &[
        any(1, Holds::Numbers(3)),
        any(2, Holds::Numbers(3)),
        any(3, Holds::Message(&INT8)),
    ],
};

static INT8: Shape = Shape {
    bytes: 128,
    fields: &[any(1, Holds::Numbers(5))],
};

/// A message of only bytes and numbers, each once.
pub(super) static FLAT: Shape = Shape {
    bytes: 256,
    fields: &[any(1, Holds::Bytes), any(2, Holds::Bytes)],
};

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_proto::hop::{Encoded, ExitRule, ExitRules, ForwardRequest, Int8, Tensor};
    use lamina_proto::inference::model_infer_request::{
        InferInputTensor, InferRequestedOutputTensor,
    };
    use lamina_proto::inference::{InferParameter, InferTensorContents, ModelInferRequest};

    fn holds<T>(shape: &Shape) {
        let (bytes, name) = (size_of::<T>() as u64, std::any::type_name::<T>());
        // A growing list has capacity for twice its contents.
        assert!(
            2 * bytes <= shape.bytes,
            "{name}: {bytes} in {}",
            shape.bytes
        );
    }

    #[test]
    fn each_shape_is_no_smaller_than_what_it_stands_for() {
        holds::<ModelInferRequest>(&INFER);
        holds::<InferInputTensor>(&INPUT);
        holds::<InferRequestedOutputTensor>(&OUTPUT);
        holds::<(String, InferParameter)>(&PARAMETER);
        holds::<InferTensorContents>(&CONTENTS);
        holds::<ForwardRequest>(&FORWARD);
        holds::<Tensor>(&TENSOR);
        holds::<Encoded>(&ENCODED);
        holds::<Int8>(&INT8);
        holds::<ExitRules>(&EXITS);
        holds::<ExitRule>(&EXIT);
    }
}
