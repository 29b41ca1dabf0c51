//! Which operators a block may use.

/// Whether a block may use `operator`.
pub(crate) fn is_allowed(operator: &str) -> bool {
    lamina_model::operator_refusal(operator).is_none() && !is_asynchronous(operator)
}

/// Whether it is left over from forks whose branches could not be serialized.
pub(crate) fn is_asynchronous(operator: &str) -> bool {
    ["prim::fork", "prim::awaitable", "aten::wait"].contains(&operator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_that_reach_outside_are_refused() {
        for good in ["aten::conv2d", "prim::If", "quantized::linear"] {
            assert!(is_allowed(good), "{good}");
        }
        for bad in [
            "aten::save",
            "aten::from_file",
            "prim::rpc_sync",
            "prim::PythonOp",
            "prim::fork",
            "aten::wait",
            "my::op",
        ] {
            assert!(!is_allowed(bad), "{bad}");
        }
    }
}
