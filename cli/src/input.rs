//! Reads files into typed values.

use crate::mistake::{Mistake, Mistakes};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde::de::{Deserializer, Error as _, SeqAccess, Visitor};
use serde_saphyr::UserMessageFormatter;
use serde_saphyr::options::NonFiniteFloatPolicy;
use std::fmt;
use std::fs;
use std::io::Read as _;
use std::marker::PhantomData;
use std::path::Path;

/// Longer files would only fill the memory.
const MAX_BYTES: u64 = 256 << 20;
/// YAML nodes in one file: enough for every link between a thousand hosts.
const MAX_YAML_NODES: usize = 16_000_000;

/// The text of a file.
///
/// # Errors
/// It cannot be read, is too long or empty, or is not text.
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
    match String::from_utf8(bytes) {
        Ok(text) if text.trim().is_empty() => Err(wrong("is empty".to_owned())),
        Ok(text) => Ok(text),
        Err(_) => Err(wrong("is no UTF-8 text".to_owned())),
    }
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
        // Reported together with all other mistakes.
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
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

/// The message without ` at line 3, column 5`, which is put in front.
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

/// Entries of a list of limited length.
pub(crate) trait Limited {
    /// Name of the list.
    const LIST: &'static str;
    /// Most entries.
    const MOST: usize;
}

/// A list that is refused as soon as it is too long, without reading the rest.
#[derive(Debug, Clone)]
pub(crate) struct Bounded<T>(pub(crate) Vec<T>);

impl<T> Default for Bounded<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de> + Limited> Deserialize<'de> for Bounded<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Limited> Visitor<'de> for List<T> {
            type Value = Bounded<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list of {}", T::LIST)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = list.next_element()? {
                    if entries.len() == T::MOST {
                        let most =
                            format!("{}: more than {}, the most there may be", T::LIST, T::MOST);
                        return Err(A::Error::custom(most));
                    }
                    entries.push(entry);
                }
                Ok(Bounded(entries))
            }
        }
        deserializer.deserialize_seq(List(PhantomData))
    }
}
