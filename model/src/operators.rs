//! Which of libtorch's operators a model may use: one list, for scanning an unopened file and for
//! the graph during preparation.

/// Namespaces of operators for forwards: libtorch's own, the language's, and those of quantized and
/// sparse layers. Others talk to other processes (`c10d`, `rpc`), load native code (`inductor`),
/// measure (`profiler`, except its marks) or need a plugin.
const NAMESPACES: [&str; 4] = ["aten", "prim", "quantized", "sparse"];

/// The traces of `torch.profiler.record_function` in a file: names for profilers, without effect
/// otherwise.
const MARKS: [&str; 4] = [
    "profiler::_record_function_enter",
    "profiler::_record_function_enter_new",
    "profiler::_record_function_exit",
    "profiler::_call_end_callbacks_on_jit_fut",
];

/// Operators of `aten` with outside effects, and these effects.
const REACHING_OUT: [(&str, &str); 3] = [
    ("save", "writes any file"),
    ("from_file", "maps any file into memory"),
    ("load_tensor", "reads files"),
];

/// Prefixes of operators of `prim` that call other processes or Python.
const CALLING_OUT: [&str; 2] = ["rpc_", "Python"];

/// Why a model may not use an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorRefusal {
    /// It is not one of libtorch's operators for forwards.
    Foreign,
    /// It has outside effects: what it does, to follow "which".
    ReachesOut(&'static str),
}

/// Why a model may not use `operator`, such as `aten::conv2d`; `None` if it may.
pub fn operator_refusal(operator: &str) -> Option<OperatorRefusal> {
    if MARKS.contains(&operator) {
        return None;
    }
    let Some((namespace, name)) = operator.split_once("::") else {
        return Some(OperatorRefusal::Foreign);
    };
    if !NAMESPACES.contains(&namespace) {
        return Some(OperatorRefusal::Foreign);
    }
    if namespace == "prim" && CALLING_OUT.iter().any(|begin| name.starts_with(begin)) {
        return Some(OperatorRefusal::ReachesOut(
            "calls another process or Python",
        ));
    }
    method_refusal(name).map(OperatorRefusal::ReachesOut)
}

/// The outside effect of an operator with that last name; `None` if it has none. A tensor's method
/// has only that name.
pub fn method_refusal(name: &str) -> Option<&'static str> {
    let mut all = REACHING_OUT.iter();
    all.find(|(refused, _)| *refused == name)
        .map(|(_, why)| *why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_that_reach_outside_are_refused() {
        for good in [
            "aten::conv2d",
            "prim::If",
            "quantized::linear",
            "sparse::qlinear",
            "profiler::_record_function_enter_new",
        ] {
            assert_eq!(operator_refusal(good), None, "{good}");
        }
        for bad in ["aten::save", "aten::from_file", "aten::load_tensor"] {
            let refusal = operator_refusal(bad);
            assert!(
                matches!(refusal, Some(OperatorRefusal::ReachesOut(_))),
                "{bad}"
            );
        }
        for bad in ["prim::rpc_sync", "prim::PythonOp"] {
            let refusal = operator_refusal(bad);
            assert!(
                matches!(refusal, Some(OperatorRefusal::ReachesOut(_))),
                "{bad}"
            );
        }
        for bad in [
            "my::op",
            "c10d::send",
            "conv2d",
            "atenx::conv2d",
            "profiler::start",
        ] {
            assert_eq!(
                operator_refusal(bad),
                Some(OperatorRefusal::Foreign),
                "{bad}"
            );
        }
    }
}
