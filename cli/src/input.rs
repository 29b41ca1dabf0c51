//! Files in, typed values out.

use crate::mistake::{Mistake, Mistakes};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde_saphyr::UserMessageFormatter;
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::marker::PhantomData;
use std::path::Path;

/// No file of ours is longer; one that is would only eat the memory.
const MAX_BYTES: u64 = 256 << 20;
/// YAML nodes in one file: enough to count every entry of one that is too long.
const MAX_YAML_NODES: usize = 16_000_000;

/// The text of a file.
///
/// # Errors
/// It cannot be read, is too long, or is no text.
pub(crate) fn read(path: &Path) -> Result<String, Mistakes> {
    let place = path.display().to_string();
    let wrong = |reason: String| Mistakes::whole(place.clone(), reason);
    let file = fs::File::open(path).map_err(|e| wrong(e.to_string()))?;
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| wrong(e.to_string()))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(wrong(format!("is longer than {} MiB", MAX_BYTES >> 20)));
    }
    String::from_utf8(bytes).map_err(|_| wrong("is no UTF-8 text".to_owned()))
}

/// A value from YAML, of which JSON is a part.
///
/// # Errors
/// The first mistake in the syntax, with its line.
pub(crate) fn yaml<T: DeserializeOwned>(place: &str, text: &str) -> Result<T, Mistakes> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_nodes: MAX_YAML_NODES,
            max_events: 4 * MAX_YAML_NODES,
            max_total_scalar_bytes: MAX_BYTES as usize,
        },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| Mistakes {
        place: place.to_owned(),
        found: vec![Mistake {
            line: error.location().map(|l| l.line()),
            field: String::new(),
            reason: without_place(&error.render_with_formatter(&UserMessageFormatter)),
        }],
    })
}

/// The message without ` at line 3, column 5`, which is told in front.
fn without_place(message: &str) -> String {
    let end = message.rfind(" at line ").unwrap_or(message.len());
    message[..end].to_owned()
}

/// A value from JSON.
///
/// # Errors
/// The first mistake in the syntax, with its line.
pub(crate) fn json<T: DeserializeOwned>(place: &str, text: &str) -> Result<T, Mistakes> {
    serde_json::from_str(text).map_err(|error| Mistakes {
        place: place.to_owned(),
        found: vec![Mistake {
            line: Some(error.line() as u64).filter(|l| *l > 0),
            field: String::new(),
            reason: without_place(&error.to_string()),
        }],
    })
}

/// The first `MOST` entries of a list, and how many there are: of a list that is
/// far too long, the rest is only counted.
#[derive(Debug, Clone)]
pub(crate) struct Counted<T, const MOST: usize> {
    pub(crate) kept: Vec<T>,
    pub(crate) count: usize,
}

impl<T, const MOST: usize> Default for Counted<T, MOST> {
    fn default() -> Self {
        Self {
            kept: Vec::new(),
            count: 0,
        }
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Counted<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T, const MOST: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for List<T, MOST> {
            type Value = Counted<T, MOST>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut counted = Counted::default();
                while counted.count < MOST {
                    let Some(entry) = list.next_element()? else {
                        return Ok(counted);
                    };
                    counted.kept.push(entry);
                    counted.count += 1;
                }
                while list.next_element::<IgnoredAny>()?.is_some() {
                    counted.count += 1;
                }
                Ok(counted)
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}
