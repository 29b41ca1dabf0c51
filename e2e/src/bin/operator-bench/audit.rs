//! What the operator wrote, from the API server's audit log.

use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Seek as _, SeekFrom};
use std::path::Path;

/// Writes and their bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Written {
    pub(crate) writes: u64,
    pub(crate) bytes: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    object_ref: Option<Object>,
    request_object: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Object {
    resource: Option<String>,
    subresource: Option<String>,
}

/// The log's current end.
pub(crate) fn end(log: &Path) -> u64 {
    std::fs::metadata(log).map_or(0, |meta| meta.len())
}

/// Writes in the log after `from`, by resource.
///
/// # Errors
/// The log cannot be read.
pub(crate) fn since(log: &Path, from: u64) -> Result<BTreeMap<String, Written>> {
    let mut file = File::open(log).with_context(|| format!("cannot read {}", log.display()))?;
    file.seek(SeekFrom::Start(from))?;
    let mut all = BTreeMap::new();
    for line in BufReader::new(file).lines() {
        count(&line?, &mut all);
    }
    Ok(all)
}

fn count(line: &str, all: &mut BTreeMap<String, Written>) {
    // The last line may be incomplete.
    let Ok(entry) = serde_json::from_str::<Entry>(line) else {
        return;
    };
    let Some(object) = entry.object_ref else {
        return;
    };
    let resource = object.resource.unwrap_or_default();
    let what = match object.subresource {
        Some(sub) => format!("{resource}/{sub}"),
        None => resource,
    };
    let bytes = entry
        .request_object
        .map_or(0, |body| body.to_string().len());
    let written: &mut Written = all.entry(what).or_default();
    written.writes += 1;
    written.bytes += bytes as u64;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_are_counted_by_what_was_written() {
        let mut all = BTreeMap::new();
        let line = r#"{"objectRef":{"resource":"computenodes","subresource":"status"},"requestObject":{"a":1}}"#;
        count(line, &mut all);
        count(line, &mut all);
        count(r#"{"objectRef":{"resource":"events"}}"#, &mut all);
        count(&line[..40], &mut all);
        let status = Written {
            writes: 2,
            bytes: 14,
        };
        let event = Written {
            writes: 1,
            bytes: 0,
        };
        let wanted = [("computenodes/status", status), ("events", event)];
        assert_eq!(all, wanted.map(|(k, v)| (k.to_owned(), v)).into());
    }
}
