//! Wire formats of Lamina, generated from `proto/*.proto`.
//!
//! - [`inference`]: Open Inference Protocol v2, for users.
//! - [`hop`]: agent to agent, a request on its path.
//! - [`control`]: agent to operator.
//! - [`strategy`]: operator to a strategy in another process.

// The documentation of generated items is in the .proto files; lints of our
// style do not apply to what we did not write.
#![allow(missing_docs, unreachable_pub, clippy::all)]

/// Open Inference Protocol v2.
pub mod inference {
    tonic::include_proto!("inference");
}

/// Agent to agent.
pub mod hop {
    tonic::include_proto!("lamina.hop.v1");
}

/// Agent to operator.
pub mod control {
    tonic::include_proto!("lamina.control.v1");

    /// Shows only the names of its entries.
    impl std::fmt::Debug for SourceSecret {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            let mut names: Vec<&String> = self.entries.keys().collect();
            names.sort();
            f.debug_set().entries(names).finish()
        }
    }
}

/// Operator to a strategy in another process.
pub mod strategy {
    tonic::include_proto!("lamina.strategy.v1");

    /// The version of this protocol, problem included.
    pub const PROTOCOL_VERSION: u32 = 1;
}

/// Largest message on any of our connections, 1 GiB: tensors are large, and
/// tonic's default of 4 MiB surprises people.
pub const MAX_MESSAGE_BYTES: usize = 1 << 30;

/// Audience of the tokens that agents show to the operator: tokens for the API server are invalid
/// there, and these at the API server.
pub const CONTROL_AUDIENCE: &str = "lamina-operator";
