//! Files named by their content.

use crate::PrepareError;
use lamina_model::{Digest, Probe};
use sha2::{Digest as _, Sha256};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

/// A written file.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) digest: Digest,
    pub(crate) bytes: u64,
    pub(crate) path: PathBuf,
}

pub(crate) fn digest_of_file(path: &Path) -> Result<Digest, PrepareError> {
    let read = || -> io::Result<Digest> {
        let mut file = File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        Ok(Digest::from_bytes(&hasher.finalize()))
    };
    read().map_err(|source| PrepareError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })
}

pub(crate) fn make_dir(dir: &Path) -> Result<(), PrepareError> {
    fs::create_dir_all(dir).map_err(|source| write_error(dir, dir, 0, source))
}

/// Writes `content` as `<digest>.<extension>`, whole or not at all.
pub(crate) fn write(dir: &Path, content: &[u8], extension: &str) -> Result<Stored, PrepareError> {
    let digest = Digest::of(content);
    let path = dir.join(format!("{digest}.{extension}"));
    let unfinished = dir.join(format!("{digest}.part"));
    let bytes = content.len() as u64;
    let written = File::create(&unfinished)
        .and_then(|mut file| file.write_all(content))
        .and_then(|()| fs::rename(&unfinished, &path));
    if let Err(source) = written {
        // The rest of it would only take the space that is missing.
        let _ = fs::remove_file(&unfinished);
        return Err(write_error(dir, &path, bytes, source));
    }
    Ok(Stored {
        digest,
        bytes,
        path,
    })
}

pub(crate) fn write_probe(dir: &Path, probe: &Probe) -> Result<Stored, PrepareError> {
    let content = probe.to_bytes().map_err(|e| PrepareError::Torch {
        step: "writing the probe",
        reason: e.to_string(),
    })?;
    write(dir, &content, "safetensors")
}

/// Removes blocks that turned out to be useless; a file that cannot be removed is only waste.
pub(crate) fn remove(files: &[Stored]) {
    for file in files {
        let _ = fs::remove_file(&file.path);
    }
}

fn write_error(dir: &Path, path: &Path, bytes: u64, source: io::Error) -> PrepareError {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => PrepareError::DiskFull {
            dir: dir.to_owned(),
            needed_bytes: bytes,
        },
        _ => PrepareError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        },
    }
}
