//! libtorch's exceptions as one line for people.

use crate::ffi::TorchError;

/// Longest message that is passed on, in characters.
const MAX_CHARS: usize = 300;

impl TorchError {
    /// The cause in one line, without trace, file names of libtorch and hints
    /// for C++ programmers.
    pub(crate) fn reason(&self) -> String {
        let text = self.0.trim();
        // The interpreter puts a trace before the message of an exception.
        let cause = ["RuntimeError: ", "Error: "]
            .iter()
            .find_map(|mark| text.rsplit_once(mark).map(|(_, cause)| cause))
            .filter(|_| text.contains("Traceback of TorchScript"))
            .unwrap_or(text);
        let line = cause.lines().find(|l| !l.trim().is_empty());
        let line = line
            .unwrap_or("no message")
            .trim()
            .trim_end_matches([':', '.']);
        line.chars().take(MAX_CHARS).collect()
    }

    /// The operator that this build of libtorch does not have, where that was
    /// the cause.
    pub(crate) fn unknown_operator(&self) -> Option<&str> {
        let (_, rest) = self.0.split_once("Unknown builtin op: ")?;
        rest.split_whitespace()
            .next()
            .map(|name| name.trim_end_matches('.'))
    }
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
    fn an_unknown_operator_is_named() {
        let error = TorchError("\nUnknown builtin op: torchvision::nms.\nCould not find".into());
        assert_eq!(error.unknown_operator(), Some("torchvision::nms"));
        assert_eq!(TorchError("else".into()).unknown_operator(), None);
    }
}
