//! TorchScript source as an archive carries it: which operators it names.
//!
//! It is read as libtorch's lexer reads it. `torch` and `ops` are where
//! operators come from, so that each use must name one there and then; a
//! tensor's methods are operators too, so that some names are refused behind
//! any dot. Words in comments count as code, `torch.jit.save` writes none, but a
//! quotation mark there opens no string behind which code could hide.

use super::ScanError;

/// What code does that no model needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodeError {
    /// An operator that reaches out of the forward.
    #[error("uses `{name}` in line {line}, which {why}")]
    Operator {
        /// As it is written.
        name: String,
        /// Where.
        line: usize,
        /// What it does.
        why: &'static str,
    },
    /// An operator or class of somebody else.
    #[error("uses `{name}` in line {line}, which is none of libtorch's operators for forwards")]
    Foreign {
        /// As it is written.
        name: String,
        /// Where.
        line: usize,
    },
    /// `torch` or `ops` as a value, behind which any operator could hide.
    #[error("uses `{name}` in line {line} without naming an operator")]
    Hidden {
        /// Which of them.
        name: String,
        /// Where.
        line: usize,
    },
    /// No text.
    #[error("is no text")]
    NotText,
    /// A string without its end.
    #[error("has a string without an end in line {line}")]
    OpenString {
        /// Where it begins.
        line: usize,
    },
}

/// Operators of libtorch that reach out of a forward, by their last name. A
/// tensor's method has only that.
const FORBIDDEN: [(&str, &str); 3] = [
    ("save", "writes any file"),
    ("from_file", "maps any file into memory"),
    ("load_tensor", "reads files"),
];

/// Where the operators of forwards live: libtorch's own, the language's, and
/// those of quantized layers. Others talk to other processes (`c10d`, `rpc`),
/// load native code (`inductor`), measure (`profiler`) or need a plugin.
const NAMESPACES: [&str; 3] = ["aten", "prim", "quantized"];

/// Operators of an allowed namespace that call other processes or Python.
const FORBIDDEN_PRIM: [&str; 2] = ["rpc_", "Python"];

/// Native classes that hold weights and nothing else.
const NATIVE_CLASSES: [&str; 3] = ["quantized", "rnn", "sparse"];

pub(super) fn check(name: &str, code: &[u8]) -> Result<(), ScanError> {
    check_code(code).map_err(|error| ScanError::Code {
        name: name.to_owned(),
        error,
    })
}

pub(super) fn check_code(code: &[u8]) -> Result<(), CodeError> {
    let code = std::str::from_utf8(code).map_err(|_| CodeError::NotText)?;
    let tokens = tokens(code)?;
    for at in 0..tokens.len() {
        check_token(&tokens, at)?;
    }
    Ok(())
}

/// `__torch__.torch.classes.NAMESPACE.Class` is native code; other names are
/// classes of the archive's own.
pub(super) fn is_allowed_class(name: &str) -> bool {
    match name.strip_prefix("__torch__.torch.classes.") {
        Some(native) => NATIVE_CLASSES
            .iter()
            .any(|n| native.split('.').next() == Some(n)),
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

fn check_token(tokens: &[Token<'_>], at: usize) -> Result<(), CodeError> {
    let Token { kind, line } = tokens[at];
    let Kind::Word(word) = kind else {
        return Ok(());
    };
    let is_member = at > 0 && tokens[at - 1].kind == Kind::Mark('.');
    if is_member {
        return refuse_forbidden(word, line);
    }
    match word {
        "torch" => check_torch(tokens, at),
        "ops" => check_ops(tokens, at),
        "__torch__" => check_class(tokens, at),
        "getattr" => check_getattr(tokens, at),
        _ => Ok(()),
    }
}

fn refuse_forbidden(word: &str, line: usize) -> Result<(), CodeError> {
    match FORBIDDEN.iter().find(|(name, _)| *name == word) {
        Some((name, why)) => Err(CodeError::Operator {
            name: format!("aten::{name}"),
            line,
            why,
        }),
        None => Ok(()),
    }
}

/// The words behind the dots that follow the word at `at`, at most `count`.
fn members<'a>(tokens: &[Token<'a>], at: usize, count: usize) -> Vec<&'a str> {
    let pairs = tokens[at + 1..].chunks_exact(2).take(count);
    let words = pairs.map_while(|pair| match (pair[0].kind, pair[1].kind) {
        (Kind::Mark('.'), Kind::Word(word)) => Some(word),
        _ => None,
    });
    words.collect()
}

fn check_torch(tokens: &[Token<'_>], at: usize) -> Result<(), CodeError> {
    // What follows is a function of `aten`, or a submodule of those.
    if members(tokens, at, 1).is_empty() && !is_assigned(tokens, at) {
        return Err(hidden(tokens[at], "torch"));
    }
    Ok(())
}

fn check_ops(tokens: &[Token<'_>], at: usize) -> Result<(), CodeError> {
    let line = tokens[at].line;
    let [namespace, operator] = members(tokens, at, 2)[..] else {
        if is_assigned(tokens, at) {
            return Ok(());
        }
        return Err(hidden(tokens[at], "ops"));
    };
    let name = format!("{namespace}::{operator}");
    if !NAMESPACES.contains(&namespace) {
        return Err(CodeError::Foreign { name, line });
    }
    if namespace == "prim" && FORBIDDEN_PRIM.iter().any(|f| operator.starts_with(f)) {
        return Err(CodeError::Operator {
            name,
            line,
            why: "calls another process or Python",
        });
    }
    Ok(())
}

/// A keyword of that name in a call, or the name of an argument, says nothing.
fn is_assigned(tokens: &[Token<'_>], at: usize) -> bool {
    let next = |ahead: usize| tokens.get(at + ahead).map(|t| t.kind);
    next(1) == Some(Kind::Mark('=')) && next(2) != Some(Kind::Mark('='))
}

fn check_class(tokens: &[Token<'_>], at: usize) -> Result<(), CodeError> {
    let name = format!("__torch__.{}", members(tokens, at, 64).join("."));
    if is_allowed_class(&name) {
        return Ok(());
    }
    Err(CodeError::Foreign {
        name,
        line: tokens[at].line,
    })
}

/// `getattr(x, "name")` is `x.name` for names that are no identifiers.
fn check_getattr(tokens: &[Token<'_>], at: usize) -> Result<(), CodeError> {
    let Some(Kind::Mark('(')) = tokens.get(at + 1).map(|t| t.kind) else {
        return Err(hidden(tokens[at], "getattr"));
    };
    let mut depth = 0;
    for token in &tokens[at + 1..] {
        match token.kind {
            Kind::Mark('(') => depth += 1,
            Kind::Mark(')') => depth -= 1,
            // An escape could spell any name.
            Kind::Text(name) if name.contains('\\') => {
                return Err(hidden(*token, "getattr"));
            }
            Kind::Text(name) => refuse_forbidden(name, token.line)?,
            _ => {}
        }
        if depth <= 0 {
            return Ok(());
        }
    }
    Ok(())
}

fn hidden(token: Token<'_>, name: &str) -> CodeError {
    CodeError::Hidden {
        name: name.to_owned(),
        line: token.line,
    }
}

fn tokens(code: &str) -> Result<Vec<Token<'_>>, CodeError> {
    let mut tokens = Vec::new();
    let mut line = 1;
    let mut rest = code;
    let mut in_comment = false;
    while let Some(first) = rest.chars().next() {
        let (kind, length) = match first {
            '"' | '\'' if !in_comment => {
                let (text, length) = string(rest).ok_or(CodeError::OpenString { line })?;
                (Some(Kind::Text(text)), length)
            }
            c if c == '_' || c.is_ascii_alphanumeric() => {
                let end = rest.find(|c: char| c != '_' && !c.is_ascii_alphanumeric());
                let length = end.unwrap_or(rest.len());
                (Some(Kind::Word(&rest[..length])), length)
            }
            // A backslash joins lines.
            c if c.is_whitespace() || c == '\\' => (None, c.len_utf8()),
            c => (Some(Kind::Mark(c)), c.len_utf8()),
        };
        in_comment = first == '#' || (in_comment && first != '\n');
        tokens.extend(kind.map(|kind| Token { kind, line }));
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    Ok(tokens)
}

/// The string at the start of `code` without its quotation marks, and its
/// length with them. Byte for byte what libtorch's lexer does.
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
