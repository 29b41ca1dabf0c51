//! libtorch's exceptions as one line for people.

use crate::ffi::TorchError;

/// Prefix of blocks' messages about a request that they cannot follow: `kOtherWay` in codec.cpp.
pub(crate) const OTHER_WAY: &str = "this request takes another way through the network";

/// Longest message that is passed on, in characters.
const MAX_CHARS: usize = 300;

impl TorchError {
    /// The cause in one line, without trace, libtorch's file names and hints for C++ programmers.
    pub(crate) fn reason(&self) -> String {
        let text = self.0.trim();
        // The interpreter puts a trace before the message of an exception.
        let cause = ["RuntimeError: ", "Error: "]
            .iter()
            .find_map(|mark| text.rsplit_once(mark).map(|(_, cause)| cause))
            .filter(|_| text.contains("Traceback of TorchScript"))
            .unwrap_or(text);
        if tells_of_a_gpu(text) {
            return "it was exported on a GPU: move the model and its example to the CPU first"
                .into();
        }
        let line = cause.lines().find(|l| !l.trim().is_empty());
        let line = for_people(line.unwrap_or("no message"));
        let line = line.trim().trim_end_matches([':', '.']);
        line.chars().take(MAX_CHARS).collect()
    }

    /// The operator that this build of libtorch lacks, if that was the cause.
    pub(crate) fn unknown_operator(&self) -> Option<&str> {
        let (_, rest) = self.0.split_once("Unknown builtin op: ")?;
        rest.split_whitespace()
            .next()
            .map(|name| name.trim_end_matches('.'))
    }
}

/// Whether it fails for want of a GPU, which no host of Lamina uses.
fn tells_of_a_gpu(text: &str) -> bool {
    const WORDS: [&str; 6] = [
        "not linked with support for cuda",
        "not compiled with CUDA",
        "without ATen_cuda",
        "without CUDA",
        "from the 'CUDA' backend",
        "NVIDIA driver",
    ];
    WORDS.iter().any(|words| text.contains(words))
}

/// A line without parts that only developers of libtorch can use: source locations, requests to
/// report a bug there, addresses.
fn for_people(line: &str) -> String {
    let mut line = line.trim();
    if let Some((_, rest)) = line.split_once("INTERNAL ASSERT FAILED") {
        let said = rest.split_once("report a bug to PyTorch.");
        line = said.map_or("", |(_, said)| said.trim());
        if line.is_empty() {
            line = "libtorch meets a case that it does not handle";
        }
    }
    if line.contains("(Could this error message be improved?") || is_of_the_language(line) {
        line = "libtorch meets a case that it does not handle";
    }
    let without = line.split_once("' backend. This could be because the operator doesn't exist");
    if let Some((named, _)) = without
        && let Some((operator, kind)) = named
            .strip_prefix("Could not run '")
            .and_then(|rest| rest.split_once("' with arguments from the '"))
    {
        return format!("libtorch has no {operator} for tensors of the kind {kind}");
    }
    if let Some((_, rest)) = line.split_once("[enforce fail at ") {
        line = rest.split_once(']').map_or(rest, |(_, said)| said);
        line = line.trim_start_matches([' ', '.', ':']);
    }
    let words = line.split(' ').filter(|word| !is_address(word));
    words.collect::<Vec<_>>().join(" ")
}

/// Whether the message comes from the C++ standard library, because of a bug in libtorch.
fn is_of_the_language(line: &str) -> bool {
    const WORDS: [&str; 6] = [
        "_M_range_check",
        "basic_string::",
        "bad optional access",
        "bad_optional_access",
        "map::at",
        "bad_variant_access",
    ];
    WORDS.iter().any(|words| line.contains(words))
}

fn is_address(word: &str) -> bool {
    let digits = word.trim_matches(|c: char| "()[]<>,;:.".contains(c));
    digits
        .strip_prefix("0x")
        .is_some_and(|digits| digits.len() >= 6 && digits.chars().all(|c| c.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(text: &str) -> String {
        TorchError(text.into()).reason()
    }

    #[test]
    fn the_cause_is_taken_out_of_an_interpreter_trace() {
        let text = "The following operation failed in the TorchScript interpreter.\n\
                    Traceback of TorchScript (most recent call last):\n  \
                    File \"m.py\", line 3, in forward\n\
                    RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x9 and 8x8)\n";
        assert_eq!(
            reason(text),
            "mat1 and mat2 shapes cannot be multiplied (1x9 and 8x8)"
        );
        let raised = "The following operation failed in the TorchScript interpreter.\n\
                      Traceback of TorchScript (most recent call last):\n\
                      builtins.ValueError: the sum is too small\n";
        assert_eq!(reason(raised), "the sum is too small");
    }

    #[test]
    fn other_messages_keep_their_first_line() {
        assert_eq!(
            reason("open file failed because of errno 2: x.pt\nat inline_container.cc"),
            "open file failed because of errno 2: x.pt"
        );
        assert_eq!(reason("  \n "), "no message");
        assert_eq!(reason(&"é".repeat(1000)).chars().count(), MAX_CHARS);
    }

    #[test]
    fn what_only_developers_of_libtorch_can_use_is_left_out() {
        assert_eq!(
            reason(
                "false INTERNAL ASSERT FAILED at \"/pytorch/x.cpp\":12, please report a bug to \
                 PyTorch. A tuple was expected"
            ),
            "A tuple was expected"
        );
        assert_eq!(
            reason("x INTERNAL ASSERT FAILED at \"/a.cpp\":1, please report a bug to PyTorch."),
            "libtorch meets a case that it does not handle"
        );
        assert_eq!(
            reason("[enforce fail at alloc_cpu.cpp:117] . can't allocate memory"),
            "can't allocate memory"
        );
        assert_eq!(
            reason("the object at 0x7f31c0ffee00 is gone"),
            "the object at is gone"
        );
        assert_eq!(
            reason("PyTorch is not compiled with CUDA support"),
            "it was exported on a GPU: move the model and its example to the CPU first"
        );
        let unhandled = "libtorch meets a case that it does not handle";
        for text in [
            "Expected `iv.isTensor()` to be true, but got false.  (Could this error message be \
             improved?  If so, please report an enhancement request to PyTorch.)",
            "vector::_M_range_check: __n (which is 3) >= this->size() (which is 3)",
        ] {
            assert_eq!(reason(text), unhandled, "{text}");
        }
        assert_eq!(
            reason(
                "Could not run 'aten::relu' with arguments from the 'SparseCPU' backend. This \
                 could be because the operator doesn't exist for this backend, or was omitted"
            ),
            "libtorch has no aten::relu for tensors of the kind SparseCPU"
        );
    }

    #[test]
    fn an_unknown_operator_is_named() {
        let error = TorchError("\nUnknown builtin op: torchvision::nms.\nCould not find".into());
        assert_eq!(error.unknown_operator(), Some("torchvision::nms"));
        assert_eq!(TorchError("else".into()).unknown_operator(), None);
    }
}
