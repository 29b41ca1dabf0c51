//! The zip archive around a model: bounds, names, and that no two readers can see different
//! archives in it.

use super::foreign::{Foreign, HEAD_BYTES};
use super::{ScanError, ScanLimits, Text, TextKind};
use std::collections::HashSet;
use std::io::{Read, Seek, SeekFrom};
use zip::read::{ArchiveOffset, Config};
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

/// Length of the end record of an archive without a comment.
const END_BYTES: u64 = 22;
const END_SIGNATURE: &[u8] = b"PK\x05\x06";
/// Before it, in large archives: the position of the record with large numbers.
const LOCATOR_BYTES: u64 = 20;
const LOCATOR_SIGNATURE: &[u8] = b"PK\x06\x07";
const LARGE_END_BYTES: u64 = 56;
/// Least size of a file's entry in the directory.
const DIRECTORY_ENTRY_BYTES: u64 = 46;

/// Folder of files that are neither code nor weights.
const EXTRA: &str = "extra/";

pub(super) struct Archive<R> {
    zip: ZipArchive<R>,
    entries: Vec<Entry>,
}

/// The directory's entry of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) inflated: u64,
    pub(super) encrypted: bool,
    pub(super) method: Method,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Stored,
    Deflated,
    Other,
}

impl<R: Read + Seek> Archive<R> {
    /// Opens it and checks the whole directory.
    pub(super) fn open(mut reader: R, limits: &ScanLimits) -> Result<Self, ScanError> {
        let bytes = reader.seek(SeekFrom::End(0)).map_err(ScanError::Read)?;
        check_ends(&mut reader, bytes, limits)?;
        // The crate must not guess the start of the archive: if the end records of a large archive,
        // which torch always writes, are as long as the directory's first entry, it takes the
        // second entry for the first.
        let at_first_byte = Config {
            archive_offset: ArchiveOffset::Known(0),
        };
        let mut zip = ZipArchive::with_config(at_first_byte, reader).map_err(not_zip)?;
        let entries = entries(&mut zip)?;
        check_entries(&entries, bytes, limits)?;
        zip.validate_header_consistency().map_err(|e| match e {
            ZipError::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => ScanError::Read(e),
            other => ambiguous(&other.to_string()),
        })?;
        Ok(Self { zip, entries })
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The files that libtorch interprets. It ignores case in names. The folder `extra` belongs to
    /// the author, and is only read by name.
    pub(super) fn texts(&self) -> Vec<Text> {
        let texts = self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| !inner_name(&entry.name).starts_with(EXTRA))
            .filter_map(|(index, entry)| {
                let name = entry.name.to_ascii_lowercase();
                let kind = if name.ends_with(".py") {
                    TextKind::Code
                } else if name.ends_with(".pkl") {
                    TextKind::Pickle
                } else {
                    return None;
                };
                let name = inner_name(&entry.name).to_owned();
                Some(Text { index, name, kind })
            });
        texts.collect()
    }

    /// Reads everything to its end, where the checksum is compared.
    pub(super) fn check_sums(&mut self) -> Result<(), ScanError> {
        for (index, Entry { name, inflated, .. }) in self.entries.iter().enumerate() {
            let file = self.zip.by_index(index);
            let file = file.map_err(|e| damaged(name, &e.to_string()))?;
            let read = std::io::copy(
                &mut file.take(inflated.saturating_add(1)),
                &mut std::io::sink(),
            );
            if read.map_err(|e| damaged(name, &e.to_string()))? != *inflated {
                return Err(damaged(name, "its size is not the declared one"));
            }
        }
        Ok(())
    }

    /// The content of one file, which must be as long as the directory says.
    pub(super) fn read(&mut self, index: usize, limit: u64) -> Result<Vec<u8>, ScanError> {
        let Entry { name, inflated, .. } = &self.entries[index];
        if *inflated > limit {
            return Err(ScanError::LongText {
                name: name.clone(),
                limit,
            });
        }
        let damaged = |what: String| damaged(name, &what);
        let file = self
            .zip
            .by_index(index)
            .map_err(|e| damaged(e.to_string()))?;
        let mut content = Vec::new();
        let mut bounded = file.take(inflated.saturating_add(1));
        let read = bounded.read_to_end(&mut content);
        read.map_err(|e| damaged(e.to_string()))?;
        if content.len() as u64 != *inflated {
            return Err(damaged("its size is not the declared one".into()));
        }
        Ok(content)
    }
}

fn damaged(name: &str, what: &str) -> ScanError {
    no_zip(&format!("its file {name:?} is damaged: {what}"))
}

/// The first and last bytes: names files that are not archives, and ensures that the directory is
/// where every reader looks for it.
fn check_ends<R: Read + Seek>(
    reader: &mut R,
    bytes: u64,
    limits: &ScanLimits,
) -> Result<(), ScanError> {
    let limit = limits.file_bytes;
    if bytes == 0 {
        return Err(ScanError::Empty);
    }
    if bytes > limit {
        return Err(ScanError::TooLarge { bytes, limit });
    }
    let begin = read_at(reader, 0, bytes.min(HEAD_BYTES))?;
    if !begin.starts_with(b"PK\x03\x04") {
        return Err(match (begin.first(), Foreign::of(&begin)) {
            (Some(0x80), _) => ScanError::BarePickle,
            (_, Some(foreign)) => ScanError::Foreign(foreign),
            _ => no_zip("it does not begin like one"),
        });
    }
    if bytes < END_BYTES {
        return Err(no_zip("it is too short"));
    }
    let end = read_at(reader, bytes - END_BYTES, END_BYTES)?;
    if !end.starts_with(END_SIGNATURE) {
        return Err(no_zip("its end is missing, or something follows it"));
    }
    let directory = Directory::find(reader, bytes, &end)?;
    // Before the directory is read, which takes memory for each of them.
    let claimed = directory.entries;
    if claimed > limits.entries as u64 {
        return Err(ScanError::TooManyEntries {
            entries: usize::try_from(claimed).unwrap_or(usize::MAX),
            limit: limits.entries,
        });
    }
    if claimed * DIRECTORY_ENTRY_BYTES > bytes {
        return Err(no_zip("it has no room for its files"));
    }
    if !directory.records_agree {
        return Err(ambiguous("its two end records do not agree"));
    }
    if directory.begin.checked_add(directory.bytes) != Some(directory.end) {
        return Err(ambiguous("its directory does not lie right before its end"));
    }
    reader.seek(SeekFrom::Start(0)).map_err(ScanError::Read)?;
    Ok(())
}

/// The position of the directory, by the records at the end.
struct Directory {
    begin: u64,
    bytes: u64,
    /// Start of the first of these records.
    end: u64,
    /// The larger of the two numbers of files that an archive can claim.
    entries: u64,
    /// Whether both records, if there are two, agree.
    records_agree: bool,
}

impl Directory {
    /// `end` is the small record, the file's last bytes.
    fn find<R: Read + Seek>(reader: &mut R, bytes: u64, end: &[u8]) -> Result<Self, ScanError> {
        let small = Self {
            begin: small_number(end, 16, 4),
            bytes: small_number(end, 12, 4),
            end: bytes - END_BYTES,
            entries: small_number(end, 10, 2),
            records_agree: true,
        };
        let Some(place) = bytes.checked_sub(END_BYTES + LOCATOR_BYTES) else {
            return Ok(small);
        };
        let locator = read_at(reader, place, LOCATOR_BYTES)?;
        if !locator.starts_with(LOCATOR_SIGNATURE) {
            return Ok(small);
        }
        let end = number(&locator, 8);
        if end > bytes.saturating_sub(LARGE_END_BYTES) {
            return Err(no_zip("its directory lies behind its end"));
        }
        let large = read_at(reader, end, LARGE_END_BYTES)?;
        let [files, size, begin] = [32, 40, 48].map(|at| number(&large, at));
        // All ones in the small one: use the large one.
        let agree = |small: u64, large: u64| small == large || small == u64::from(u32::MAX);
        Ok(Self {
            begin,
            bytes: size,
            end,
            entries: match small.entries {
                0xffff => files,
                few => few.max(files),
            },
            records_agree: agree(small.begin, begin) && agree(small.bytes, size),
        })
    }
}

/// The `count` bytes at `at` as a number.
fn small_number(bytes: &[u8], at: usize, count: usize) -> u64 {
    let bytes = bytes.iter().skip(at).take(count).rev();
    bytes.fold(0, |number, &byte| (number << 8) | u64::from(byte))
}

/// The eight bytes at `at` as a number; 0 beyond the end.
fn number(bytes: &[u8], at: usize) -> u64 {
    let eight = bytes.get(at..at + 8).and_then(|b| b.try_into().ok());
    eight.map_or(0, u64::from_le_bytes)
}

fn read_at<R: Read + Seek>(reader: &mut R, at: u64, count: u64) -> Result<Vec<u8>, ScanError> {
    reader.seek(SeekFrom::Start(at)).map_err(ScanError::Read)?;
    let mut content = Vec::new();
    let mut part = reader.take(count);
    part.read_to_end(&mut content).map_err(ScanError::Read)?;
    if content.len() as u64 == count {
        Ok(content)
    } else {
        Err(no_zip("it became shorter"))
    }
}

fn entries<R: Read + Seek>(zip: &mut ZipArchive<R>) -> Result<Vec<Entry>, ScanError> {
    if zip.has_duplicate_names() {
        return Err(ambiguous("a name stands in its directory twice"));
    }
    let mut entries = Vec::with_capacity(zip.len());
    for index in 0..zip.len() {
        let file = zip.by_index_raw(index).map_err(not_zip)?;
        let name = std::str::from_utf8(file.name_raw()).map_err(|_| ScanError::BadName {
            name: String::from_utf8_lossy(file.name_raw()).into_owned(),
            reason: "is no UTF-8",
        })?;
        entries.push(Entry {
            name: name.to_owned(),
            inflated: file.size(),
            encrypted: file.encrypted(),
            method: match file.compression() {
                CompressionMethod::Stored => Method::Stored,
                CompressionMethod::Deflated => Method::Deflated,
                _ => Method::Other,
            },
        });
    }
    Ok(entries)
}

/// Checks the directory.
pub(super) fn check_entries(
    entries: &[Entry],
    bytes: u64,
    limits: &ScanLimits,
) -> Result<(), ScanError> {
    if entries.len() > limits.entries {
        return Err(ScanError::TooManyEntries {
            entries: entries.len(),
            limit: limits.entries,
        });
    }
    let mut names = HashSet::new();
    for entry in entries {
        check_name(&entry.name)?;
        check_kind(entry)?;
        if !names.insert(entry.name.to_lowercase()) {
            return Err(ScanError::Duplicate {
                name: entry.name.clone(),
            });
        }
    }
    check_inflated(entries, bytes, limits)?;
    check_is_torchscript(entries)
}

fn check_name(name: &str) -> Result<(), ScanError> {
    let reason = if name.starts_with('/') {
        "is an absolute path"
    } else if name.split('/').any(|part| part == "..") {
        "leaves the archive"
    } else if name.contains('\\') || name.chars().any(char::is_control) {
        "has a backslash or a control character"
    } else if name.is_empty() || name.len() > 1024 {
        "is empty or longer than 1024 bytes"
    } else {
        return Ok(());
    };
    Err(ScanError::BadName {
        name: name.chars().take(100).collect(),
        reason,
    })
}

fn check_kind(entry: &Entry) -> Result<(), ScanError> {
    let what = match (entry.encrypted, entry.method) {
        (true, _) => "encrypted",
        (_, Method::Other) => "compressed in a way that libtorch does not read",
        _ => return Ok(()),
    };
    Err(ScanError::UnsupportedEntry {
        name: entry.name.clone(),
        what,
    })
}

fn check_inflated(entries: &[Entry], bytes: u64, limits: &ScanLimits) -> Result<(), ScanError> {
    let sizes = entries.iter().map(|e| e.inflated);
    let inflated = sizes.fold(0, u64::saturating_add);
    let stored = entries.iter().filter(|e| e.method == Method::Stored);
    let stored = stored.map(|e| e.inflated).fold(0, u64::saturating_add);
    let limit = bytes
        .saturating_mul(limits.ratio)
        .max(limits.inflated_bytes_at_least);
    if inflated > limit || stored > bytes {
        let limit = if stored > bytes { bytes } else { limit };
        return Err(ScanError::Bomb {
            bytes,
            inflated,
            limit,
        });
    }
    Ok(())
}

fn check_is_torchscript(entries: &[Entry]) -> Result<(), ScanError> {
    // Before PyTorch 2.8 it had no folder.
    if entries
        .iter()
        .any(|e| e.name == "serialized_exported_program.json")
    {
        return Err(ScanError::TorchExport);
    }
    let Some((folder, _)) = entries.first().and_then(|e| e.name.split_once('/')) else {
        return Err(ScanError::NotTorchScript {
            missing: "a folder around its files",
        });
    };
    if let Some(stray) = entries
        .iter()
        .find(|e| e.name.split_once('/').map(|(f, _)| f) != Some(folder))
    {
        return Err(ScanError::BadName {
            name: stray.name.clone(),
            reason: "is outside the archive's one folder",
        });
    }
    let has = |name: &str| entries.iter().any(|e| inner_name(&e.name) == name);
    let has_code = entries
        .iter()
        .any(|e| inner_name(&e.name).starts_with("code/"));
    if has("archive_format") {
        return Err(ScanError::TorchExport);
    }
    if has(".data/extern_modules") {
        return Err(ScanError::Package);
    }
    if has("model.json") && !has("data.pkl") {
        return Err(ScanError::Old);
    }
    let missing = if !has("data.pkl") {
        "data.pkl"
    } else if !has("constants.pkl") || !has_code {
        return Err(ScanError::WithoutCode);
    } else if !has("version") && !has(".data/version") {
        "version"
    } else {
        return Ok(());
    };
    Err(ScanError::NotTorchScript { missing })
}

/// The name inside the one folder, `code/__torch__.py`.
fn inner_name(name: &str) -> &str {
    name.split_once('/').map_or(name, |(_, inner)| inner)
}

fn no_zip(reason: &str) -> ScanError {
    ScanError::NotZip {
        reason: reason.to_owned(),
    }
}

fn ambiguous(reason: &str) -> ScanError {
    ScanError::Ambiguous {
        reason: reason.to_owned(),
    }
}

fn not_zip(error: ZipError) -> ScanError {
    match error {
        ZipError::Io(e) if e.kind() != std::io::ErrorKind::UnexpectedEof => ScanError::Read(e),
        other => no_zip(&other.to_string()),
    }
}
