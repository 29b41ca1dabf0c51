//! Pickles as libtorch reads them: a program for a small stack machine. Only what `torch.jit.save`
//! writes is accepted.

use super::ScanError;

/// Contents of a pickle that no model needs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PickleError {
    /// A name other than TorchScript's own types.
    #[error("names {module}.{name}, which is none of TorchScript's types")]
    Global {
        /// Python's module.
        module: String,
        /// The name in it.
        name: String,
    },
    /// An instruction that `torch.jit.save` does not write.
    #[error("has the instruction 0x{opcode:02x} at byte {at}, which torch.jit.save does not write")]
    Opcode {
        /// The instruction.
        opcode: u8,
        /// Its position.
        at: usize,
    },
    /// It is truncated.
    #[error("ends too early")]
    Truncated,
    /// It does not start as protocol 2.
    #[error("is no pickle of protocol 2")]
    Protocol,
    /// Bytes after its end.
    #[error("goes on after its end")]
    Trailing,
    /// A memo index far beyond what was stored: libtorch would allocate all entries up to it.
    #[error("uses the place {place} of its memory without having filled it")]
    Memo {
        /// The index.
        place: u64,
    },
}

pub(super) fn check(name: &str, pickle: &[u8]) -> Result<(), ScanError> {
    check_pickle(pickle).map_err(|error| ScanError::Pickle {
        name: name.to_owned(),
        error,
    })
}

/// Checks one pickle.
///
/// # Errors
/// Contents that no model needs.
pub fn check_pickle(pickle: &[u8]) -> Result<(), PickleError> {
    let mut reader = Reader { pickle, at: 0 };
    if reader.take(2) != Ok(&[0x80, 2]) {
        return Err(PickleError::Protocol);
    }
    // Each instruction stores at most one entry.
    let mut places = 0;
    loop {
        let at = reader.at;
        let opcode = reader.byte()?;
        match opcode {
            b'.' => break,
            b'c' => check_global(reader.line()?, reader.line()?)?,
            b'q' => check_place(reader.number(1)?, places)?,
            b'r' => check_place(reader.number(4)?, places)?,
            b'X' => {
                let length = reader.number(4)?;
                reader.skip(length)?;
            }
            0x8a => {
                let length = reader.number(1)?;
                reader.skip(length)?;
            }
            _ => match operand_bytes(opcode) {
                Some(count) => reader.skip(count)?,
                None => return Err(PickleError::Opcode { opcode, at }),
            },
        }
        places += 1;
    }
    if reader.at == pickle.len() {
        Ok(())
    } else {
        Err(PickleError::Trailing)
    }
}

/// Operand bytes of the fixed-length instructions that libtorch's own reader knows; `None` for all
/// others.
const fn operand_bytes(opcode: u8) -> Option<u64> {
    Some(match opcode {
        // ( MARK, N NONE, ] and ) and } empty ones, a/e/l/t/d/s/u containers
        b'(' | b'N' | b']' | b')' | b'}' | b'e' | b'l' | b't' | b'd' | b's' | b'u' => 0,
        // TUPLE1 to 3, NEWTRUE, NEWFALSE, NEWOBJ
        0x85 | 0x86 | 0x87 | 0x88 | 0x89 | 0x81 => 0,
        // BUILD, REDUCE, BINPERSID
        b'b' | b'R' | b'Q' => 0,
        // BININT1, BINGET
        b'K' | b'h' => 1,
        // BININT2
        b'M' => 2,
        // BININT, LONG_BINGET
        b'J' | b'j' => 4,
        // BINFLOAT
        b'G' => 8,
        _ => return None,
    })
}

const fn check_place(place: u64, places: u64) -> Result<(), PickleError> {
    if place > places {
        return Err(PickleError::Memo { place });
    }
    Ok(())
}

fn check_global(module: &[u8], name: &[u8]) -> Result<(), PickleError> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (module, name) = (text(module), text(name));
    if is_allowed(&module, &name) {
        return Ok(());
    }
    let short = |text: String| text.chars().take(100).collect();
    Err(PickleError::Global {
        module: short(module),
        name: short(name),
    })
}

/// Names that libtorch's reader knows, classes of the archive's own code, and the packed weights of
/// quantized layers.
fn is_allowed(module: &str, name: &str) -> bool {
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    match module {
        // Types, memory formats and storages: names only, resolved in a table.
        "torch" => is_name(name),
        "torch.jit._pickle" => matches!(
            name,
            "build_tensor_from_id"
                | "restore_type_tag"
                | "build_intlist"
                | "build_tensorlist"
                | "build_doublelist"
                | "build_boollist"
        ),
        "torch._utils" => matches!(
            name,
            "_rebuild_tensor_v2" | "_rebuild_qtensor" | "_rebuild_sparse_tensor"
        ),
        "torch._tensor" => name == "_rebuild_from_type_v2",
        "builtins" => name == "complex",
        "collections" => name == "OrderedDict",
        _ => {
            let mut parts = module.split('.');
            parts.next() == Some("__torch__")
                && parts.all(is_name)
                && is_name(name)
                && super::code::is_allowed_class(&format!("{module}.{name}"))
        }
    }
}

struct Reader<'a> {
    pickle: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], PickleError> {
        let end = self.at.checked_add(count);
        let taken = end.and_then(|end| self.pickle.get(self.at..end));
        let taken = taken.ok_or(PickleError::Truncated)?;
        self.at += count;
        Ok(taken)
    }

    fn skip(&mut self, count: u64) -> Result<(), PickleError> {
        let count = usize::try_from(count).map_err(|_| PickleError::Truncated)?;
        self.take(count).map(|_| ())
    }

    fn byte(&mut self) -> Result<u8, PickleError> {
        self.take(1).map(|taken| taken[0])
    }

    /// A little-endian number of `count` bytes.
    fn number(&mut self, count: usize) -> Result<u64, PickleError> {
        let bytes = self.take(count)?;
        Ok(bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
    }

    /// Up to the next newline, without it.
    fn line(&mut self) -> Result<&'a [u8], PickleError> {
        let rest = &self.pickle[self.at..];
        let length = rest.iter().position(|b| *b == b'\n');
        let line = self.take(length.ok_or(PickleError::Truncated)?)?;
        self.at += 1;
        Ok(line)
    }
}
