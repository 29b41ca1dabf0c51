use super::{CodeError, Foreign, PickleError};

/// Why a file is not passed to libtorch.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The file cannot be read; its content is unknown.
    #[error("cannot read the file")]
    Read(#[source] std::io::Error),
    /// It is empty.
    #[error("the file is empty")]
    Empty,
    /// Larger than a model may be.
    #[error("it has {bytes} bytes, more than {limit}")]
    TooLarge {
        /// Bytes of the file.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The format of `torch.save` before zip archives.
    #[error(
        "it is a bare pickle, as torch.save wrote before PyTorch 1.6: load it in Python and export the module with torch.jit.trace and torch.jit.save"
    )]
    BarePickle,
    /// A model in another format.
    #[error("{0}")]
    Foreign(Foreign),
    /// Not a zip archive, or a damaged one.
    #[error("it is no whole zip archive: {reason}")]
    NotZip {
        /// The problem.
        reason: String,
    },
    /// Readers could disagree about its content.
    #[error("its zip archive is ambiguous: {reason}")]
    Ambiguous {
        /// The ambiguity.
        reason: String,
    },
    /// More files than a model may have.
    #[error("it holds {entries} files, more than {limit}")]
    TooManyEntries {
        /// Files inside.
        entries: usize,
        /// The limit.
        limit: usize,
    },
    /// A zip bomb.
    #[error(
        "it inflates to {inflated} bytes, more than {limit} for a file of {bytes} (a zip bomb)"
    )]
    Bomb {
        /// Bytes of the file.
        bytes: u64,
        /// Bytes that its files claim, or have.
        inflated: u64,
        /// The limit.
        limit: u64,
    },
    /// A name that leaves the archive or is invalid.
    #[error("the name of its file {name:?} {reason}")]
    BadName {
        /// The name.
        name: String,
        /// The problem.
        reason: &'static str,
    },
    /// Two files that libtorch, which ignores case, cannot tell apart.
    #[error("it holds {name:?} twice (libtorch ignores case)")]
    Duplicate {
        /// The second one.
        name: String,
    },
    /// An entry that libtorch cannot read.
    #[error("its file {name:?} is {what}")]
    UnsupportedEntry {
        /// The entry.
        name: String,
        /// Its kind.
        what: &'static str,
    },
    /// A text longer than any legitimate one.
    #[error("its file {name:?} holds more than {limit} bytes")]
    LongText {
        /// The entry.
        name: String,
        /// The limit.
        limit: u64,
    },
    /// `torch.save` of tensors or of a Python object.
    #[error(
        "it holds data without code, as torch.save writes of a module or a state_dict (.pth): load it in Python and export the module with torch.jit.trace and torch.jit.save, or with torch.export.save and `python -m lamina export`"
    )]
    WithoutCode,
    /// `torch.export.save`.
    #[error(
        "it was written by torch.export (.pt2): `python -m lamina export FILE.pt2 -o MODEL.pt` writes the TorchScript file"
    )]
    TorchExport,
    /// `torch.package`.
    #[error(
        "it is a package of torch.package: load the module in Python with torch.package.PackageImporter, and export it with torch.jit.trace and torch.jit.save"
    )]
    Package,
    /// TorchScript as PyTorch wrote it up to 1.1.
    #[error(
        "it was written by PyTorch 1.1 or older: load it with torch.jit.load, and write it again with torch.jit.save of PyTorch 1.6 to 2.13"
    )]
    Old,
    /// Another kind of zip archive.
    #[error("it is a zip archive without {missing}, which torch.jit.save writes")]
    NotTorchScript {
        /// The first file that is missing.
        missing: &'static str,
    },
    /// A pickle with contents that no model needs.
    #[error("its {name} {error}")]
    Pickle {
        /// The entry.
        name: String,
        /// The contents.
        error: PickleError,
    },
    /// Code that no model needs.
    #[error("its {name} {error}")]
    Code {
        /// The entry.
        name: String,
        /// The code.
        error: CodeError,
    },
}
