//! TorchScript source in an archive: which operators it names.
//!
//! It is read as libtorch's lexer reads it. `torch` and `ops` are where
//! operators come from, so each use must name one directly; a tensor's
//! methods are operators too, so some names are refused after any dot. Words
//! in comments count as code (`torch.jit.save` writes none), but a quotation
//! mark there opens no string that could hide code.

use super::ScanError;
use lamina_model::{OperatorRefusal, method_refusal, operator_refusal};

/// Code that no model needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// An operator with outside effects.
    #[error("uses `{name}` in line {line}, which {why}")]
    Operator {
        /// As written.
        name: String,
        /// Its line.
        line: usize,
        /// Its effect.
        why: &'static str,
    },
    /// A foreign operator or class.
    #[error("uses `{name}` in line {line}, which is none of libtorch's operators for forwards")]
    Foreign {
        /// As written.
        name: String,
        /// Its line.
        line: usize,
    },
    /// `torch` or `ops` as a value, which could hide any operator.
    #[error("uses `{name}` in line {line} without naming an operator")]
    Hidden {
        /// Which of them.
        name: String,
        /// Its line.
        line: usize,
    },
    /// Not text.
    #[error("is no text")]
    NotText,
    /// An unterminated string.
    #[error("has a string without an end in line {line}")]
    OpenString {
        /// Its first line.
        line: usize,
    },
}

/// Most tokens of a `getattr(…)`, including nested ones.
const GETATTR_TOKENS: usize = 256;

/// Namespaces of native classes that hold only weights.
const NATIVE_CLASSES: [&str; 3] = ["quantized", "rnn", "sparse"];
/// The native class of a profiler's marks.
const MARK_CLASS: &str = "profiler._RecordFunction";

pub(super) fn check(name: &str, code: &[u8]) -> Result<(), ScanError> {
    check_code(code).map_err(|error| ScanError::Code {
        name: name.to_owned(),
        error,
    })
}

/// Checks one file of code.
///
/// # Errors
/// Code that no model needs.
pub fn check_code(code: &[u8]) -> Result<(), CodeError> {
    let code = std::str::from_utf8(code).map_err(|_| CodeError::NotText)?;
    let mut lexer = Lexer::new(code);
    let mut previous = None;
    while let Some(token) = lexer.next().transpose()? {
        check_token(previous, token, lexer)?;
        previous = Some(token.kind);
    }
    Ok(())
}

/// `__torch__.torch.classes.NAMESPACE.Class` is native code; other names are
/// classes of the archive's own.
pub(super) fn is_allowed_class(name: &str) -> bool {
    match name.strip_prefix("__torch__.torch.classes.") {
        Some(native) => {
            let namespace = native.split('.').next();
            native == MARK_CLASS || NATIVE_CLASSES.iter().any(|n| namespace == Some(n))
        }
        None => true,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Token<'a> {
    kind: Kind<'a>,
    line: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind<'a> {
    Word(&'a str),
    /// Without its quotation marks.
    Text(&'a str),
    Mark(char),
}

/// `after` is the position after `token`.
fn check_token(
    previous: Option<Kind<'_>>,
    token: Token<'_>,
    after: Lexer<'_>,
) -> Result<(), CodeError> {
    let Kind::Word(word) = token.kind else {
        return Ok(());
    };
    if previous == Some(Kind::Mark('.')) {
        return refuse_forbidden(word, token.line);
    }
    match word {
        "torch" => check_torch(token.line, after),
        "ops" => check_ops(token.line, after),
        "__torch__" => check_class(token.line, after),
        "getattr" => check_getattr(token.line, after),
        _ => Ok(()),
    }
}

fn refuse_forbidden(word: &str, line: usize) -> Result<(), CodeError> {
    match method_refusal(word) {
        Some(why) => Err(CodeError::Operator {
            name: format!("aten::{word}"),
            line,
            why,
        }),
        None => Ok(()),
    }
}

/// The words after the next dots, at most `count`.
fn members<'a>(after: Lexer<'a>, count: usize) -> Vec<&'a str> {
    let mut kinds = after.kinds();
    let pairs = std::iter::from_fn(|| match (kinds.next()?, kinds.next()?) {
        (Kind::Mark('.'), Kind::Word(word)) => Some(word),
        _ => None,
    });
    pairs.take(count).collect()
}

fn check_torch(line: usize, after: Lexer<'_>) -> Result<(), CodeError> {
    // A function of `aten` follows, or a submodule of those.
    if members(after, 1).is_empty() && !is_assigned(after) {
        return Err(hidden(line, "torch"));
    }
    Ok(())
}

fn check_ops(line: usize, after: Lexer<'_>) -> Result<(), CodeError> {
    let [namespace, operator] = members(after, 2)[..] else {
        if is_assigned(after) {
            return Ok(());
        }
        return Err(hidden(line, "ops"));
    };
    let name = format!("{namespace}::{operator}");
    match operator_refusal(&name) {
        None => Ok(()),
        Some(OperatorRefusal::Foreign) => Err(CodeError::Foreign { name, line }),
        Some(OperatorRefusal::ReachesOut(why)) => Err(CodeError::Operator { name, line, why }),
    }
}

/// A keyword argument or parameter of that name is harmless.
fn is_assigned(after: Lexer<'_>) -> bool {
    let mut kinds = after.kinds();
    kinds.next() == Some(Kind::Mark('=')) && kinds.next() != Some(Kind::Mark('='))
}

fn check_class(line: usize, after: Lexer<'_>) -> Result<(), CodeError> {
    let name = format!("__torch__.{}", members(after, 64).join("."));
    if is_allowed_class(&name) {
        return Ok(());
    }
    Err(CodeError::Foreign { name, line })
}

/// `getattr(x, "name")` is `x.name` for names that are not identifiers.
fn check_getattr(line: usize, after: Lexer<'_>) -> Result<(), CodeError> {
    let mut depth = 0;
    for kind in after.kinds().take(GETATTR_TOKENS) {
        match kind {
            Kind::Mark('(') => depth += 1,
            Kind::Mark(')') => depth -= 1,
            // An escape could spell any name.
            Kind::Text(name) if name.contains('\\') => break,
            Kind::Text(name) => refuse_forbidden(name, line)?,
            _ => {}
        }
        match depth {
            0 if kind == Kind::Mark(')') => return Ok(()),
            0 => break,
            _ => {}
        }
    }
    Err(hidden(line, "getattr"))
}

fn hidden(line: usize, name: &str) -> CodeError {
    CodeError::Hidden {
        name: name.to_owned(),
        line,
    }
}

/// The reading position; a copy looks ahead.
#[derive(Debug, Clone, Copy)]
struct Lexer<'a> {
    rest: &'a str,
    line: usize,
    in_comment: bool,
}

impl<'a> Lexer<'a> {
    const fn new(code: &'a str) -> Self {
        Self {
            rest: code,
            line: 1,
            in_comment: false,
        }
    }

    /// The following tokens, up to an error.
    fn kinds(self) -> impl Iterator<Item = Kind<'a>> {
        self.map_while(Result::ok).map(|token| token.kind)
    }

    /// The token that starts with `first`, and its length; `None` for white space.
    fn read(&self, first: char) -> Option<(Option<Kind<'a>>, usize)> {
        Some(match first {
            '"' | '\'' if !self.in_comment => {
                let (text, length) = string(self.rest)?;
                (Some(Kind::Text(text)), length)
            }
            c if c == '_' || c.is_ascii_alphanumeric() => {
                let is_other = |c: char| c != '_' && !c.is_ascii_alphanumeric();
                let length = self.rest.find(is_other).unwrap_or(self.rest.len());
                (Some(Kind::Word(&self.rest[..length])), length)
            }
            // A backslash joins lines.
            c if c.is_whitespace() || c == '\\' => (None, c.len_utf8()),
            c => (Some(Kind::Mark(c)), c.len_utf8()),
        })
    }
}

impl<'a> Iterator for Lexer<'a> {
    type Item = Result<Token<'a>, CodeError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let first = self.rest.chars().next()?;
            let line = self.line;
            let Some((kind, length)) = self.read(first) else {
                self.rest = "";
                return Some(Err(CodeError::OpenString { line }));
            };
            self.in_comment = first == '#' || (self.in_comment && first != '\n');
            let read = &self.rest.as_bytes()[..length];
            self.line += read.iter().filter(|b| **b == b'\n').count();
            self.rest = &self.rest[length..];
            if let Some(kind) = kind {
                return Some(Ok(Token { kind, line }));
            }
        }
    }
}

/// The string at the start of `code` without its quotation marks, and its length including them.
/// Byte for byte as libtorch's lexer.
fn string(code: &str) -> Option<(&str, usize)> {
    let bytes = code.as_bytes();
    let quote = bytes[0];
    let is_triple = bytes.len() >= 3 && bytes[1] == quote && bytes[2] == quote;
    let marks = if is_triple { 3 } else { 1 };
    let mut at = marks;
    loop {
        let rest = bytes.get(at..)?;
        match rest.first()? {
            b'\n' if !is_triple => return None,
            b'\\' => at += 2,
            _ if rest.len() >= marks && rest[..marks].iter().all(|b| *b == quote) => {
                return Some((code.get(marks..at)?, at + marks));
            }
            _ => at += 1,
        }
    }
}
