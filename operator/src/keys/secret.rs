//! Turns Secrets into the keys that agents receive. Pure.

use crate::state::ids::ObjectId;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use lamina_model::Digest;
use lamina_proto::control::ApiKey;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

/// Marks a Secret whose entries are keys of clients.
pub(super) const LABEL: &str = "serving.lamina.dev/api-key=true";
/// Names of the models that its keys are for, separated by commas; all of the namespace by default.
const MODELS: &str = "serving.lamina.dev/models";
/// Requests per second that each of its keys may send to one agent.
const RATE: &str = "serving.lamina.dev/requests-per-second";
/// Length of a key in bytes: its hash is on many hosts, so it must not be guessable.
const KEY_BYTES: RangeInclusive<usize> = 20..=512;
const RATES: RangeInclusive<u32> = 1..=1_000_000;
/// Most models that a Secret may name.
const MOST_MODELS: usize = 256;
/// Most keys of a namespace, so that none crowds out others, and of all together.
const MOST_OF_NAMESPACE: usize = 256;
const MOST: usize = 4096;

/// A mistake in a Secret or in one of its keys. Never includes its contents.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Mistake {
    #[error(
        "entry `{0}` is no key: it must have {least} to {most} visible ASCII characters, such as \
         `openssl rand -hex 32` gives",
        least = KEY_BYTES.start(),
        most = KEY_BYTES.end()
    )]
    Key(String),
    #[error(
        "the annotation {RATE} is no whole number from {least} to {most}; none of its keys is \
         valid",
        least = RATES.start(),
        most = RATES.end()
    )]
    Rate,
    #[error(
        "the annotation {MODELS} must name 1 to {MOST_MODELS} models of the namespace, with commas \
         between them; none of its keys is valid"
    )]
    Models,
    #[error("entry `{0}` is a key of an older Secret, which keeps it")]
    Taken(String),
    #[error(
        "there are {MOST_OF_NAMESPACE} keys in its namespace, or {MOST} in all; further ones are not valid"
    )]
    TooMany,
}

/// The keys of Secrets, and their mistakes.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Gathered {
    pub(super) keys: Vec<ApiKey>,
    /// Secrets with their mistakes, grouped by Secret.
    pub(super) mistakes: Vec<(ObjectId, Mistake)>,
}

/// The keys of `secrets`; if one is in several, the oldest counts.
pub(super) fn gather(mut secrets: Vec<Arc<Secret>>) -> Gathered {
    secrets.sort_by_cached_key(|secret| {
        let made = secret.creation_timestamp().map(|time| time.0);
        let made = made.unwrap_or(Timestamp::MAX);
        (made, secret.namespace(), secret.name_any())
    });
    let mut gathered = Gathered::default();
    let mut known: BTreeMap<String, ApiKey> = BTreeMap::new();
    let mut of_namespaces: BTreeMap<String, usize> = BTreeMap::new();
    for secret in &secrets {
        let namespace = secret.namespace().unwrap_or_default();
        let id = ObjectId::of(&secret.metadata);
        let mut complain = |mistake| gathered.mistakes.push((id.clone(), mistake));
        let terms = match Terms::of(secret) {
            Ok(terms) => terms,
            Err(mistake) => {
                complain(mistake);
                continue;
            }
        };
        for (entry, value) in secret.data.iter().flatten() {
            let Some(sha256) = digest(&value.0) else {
                complain(Mistake::Key(entry.clone()));
                continue;
            };
            let sha256 = sha256.to_string();
            if known.contains_key(&sha256) {
                complain(Mistake::Taken(entry.clone()));
                continue;
            }
            let of_namespace = of_namespaces.entry(namespace.clone()).or_default();
            if *of_namespace >= MOST_OF_NAMESPACE || known.len() >= MOST {
                complain(Mistake::TooMany);
                break;
            }
            *of_namespace += 1;
            let key = ApiKey {
                sha256: sha256.clone(),
                namespace: namespace.clone(),
                models: terms.models.clone(),
                requests_per_second: terms.requests_per_second,
            };
            known.insert(sha256, key);
        }
    }
    gathered.keys = known.into_values().collect();
    gathered
}

/// The limits of each key of a Secret.
struct Terms {
    models: Vec<String>,
    requests_per_second: u32,
}

impl Terms {
    /// A Secret with unreadable limits has no valid key: nobody gets more than intended.
    fn of(secret: &Secret) -> Result<Self, Mistake> {
        let annotation = |name: &str| secret.annotations().get(name);
        let requests_per_second = match annotation(RATE) {
            None => 0,
            Some(text) => {
                let rate = text.trim().parse().ok();
                rate.filter(|rate| RATES.contains(rate))
                    .ok_or(Mistake::Rate)?
            }
        };
        let models = match annotation(MODELS) {
            None => Vec::new(),
            Some(text) => models(text).ok_or(Mistake::Models)?,
        };
        Ok(Self {
            models,
            requests_per_second,
        })
    }
}

fn models(text: &str) -> Option<Vec<String>> {
    let names = text.split(',').map(str::trim).filter(|n| !n.is_empty());
    let names: Vec<String> = names.map(str::to_owned).collect();
    (1..=MOST_MODELS).contains(&names.len()).then_some(names)
}

/// The key's hash; `None` if it is invalid. A trailing line end, as in text files, is removed.
fn digest(value: &[u8]) -> Option<Digest> {
    let value = value.strip_suffix(b"\n").unwrap_or(value);
    let value = value.strip_suffix(b"\r").unwrap_or(value);
    let is_key = KEY_BYTES.contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
    is_key.then(|| Digest::of(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use kube::core::ObjectMeta;

    const KEY: &str = "0123456789abcdef0123";

    fn secret(namespace: &str, name: &str, keys: &[&str], notes: &[(&str, &str)]) -> Secret {
        let entries = keys.iter().enumerate();
        let entries = entries.map(|(n, key)| (format!("key-{n}"), ByteString((*key).into())));
        let notes = notes
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Secret {
            metadata: ObjectMeta {
                namespace: Some(namespace.to_owned()),
                name: Some(name.to_owned()),
                annotations: Some(notes.collect()),
                ..ObjectMeta::default()
            },
            data: Some(entries.collect()),
            ..Secret::default()
        }
    }

    fn made_at(seconds: i64, secret: Secret) -> Secret {
        let mut secret = secret;
        let at = Timestamp::from_second(seconds).unwrap();
        secret.metadata.creation_timestamp = Some(Time(at));
        secret
    }

    fn gathered(secrets: Vec<Secret>) -> Gathered {
        gather(secrets.into_iter().map(Arc::new).collect())
    }

    fn mistakes(gathered: &Gathered) -> Vec<String> {
        let mistakes = gathered.mistakes.iter();
        mistakes
            .map(|(id, m)| format!("{}/{}: {m}", id.namespace, id.name))
            .collect()
    }

    #[test]
    fn each_entry_is_a_key_with_the_terms_of_its_secret() {
        let notes = [(MODELS, "m, n,"), (RATE, "20")];
        let other = "another-key-of-the-lab";
        let found = gathered(vec![secret("lab", "cam", &[KEY, other], &notes)]);
        assert!(found.mistakes.is_empty(), "{found:?}");
        assert_eq!(found.keys.len(), 2);
        for key in &found.keys {
            assert_eq!(
                (key.namespace.as_str(), key.requests_per_second),
                ("lab", 20)
            );
            assert_eq!(key.models, ["m", "n"]);
        }
        let hashes: Vec<&str> = found.keys.iter().map(|k| k.sha256.as_str()).collect();
        assert!(hashes.contains(&Digest::of(KEY.as_bytes()).as_str()));
        assert!(!format!("{found:?}").contains(KEY));
    }

    #[test]
    fn the_end_of_a_line_is_no_part_of_a_key() {
        let expected = gathered(vec![secret("lab", "cam", &[KEY], &[])]);
        for end in ["\n", "\r\n"] {
            let key = format!("{KEY}{end}");
            let found = gathered(vec![secret("lab", "cam", &[&key], &[])]);
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_cannot_be_read_gives_nobody_more_than_was_meant() {
        for (notes, said) in [
            (&[(RATE, "0")][..], "no whole number"),
            (&[(RATE, "fast")][..], "no whole number"),
            (&[(RATE, "99999999999")][..], "no whole number"),
            (&[(MODELS, " , ")][..], "must name 1 to"),
        ] {
            let found = gathered(vec![secret("lab", "cam", &[KEY], notes)]);
            assert!(found.keys.is_empty(), "{notes:?}");
            assert!(mistakes(&found)[0].contains(said), "{found:?}");
        }
    }

    #[test]
    fn a_key_that_could_be_guessed_is_none_and_is_not_shown() {
        let long = "x".repeat(513);
        let bad = ["hunter2", "", "with a space in the middle", long.as_str()];
        let found = gathered(vec![secret("lab", "cam", &bad, &[])]);
        assert!(found.keys.is_empty());
        assert_eq!(found.mistakes.len(), bad.len());
        assert!(!mistakes(&found).join(" ").contains("hunter2"));
    }

    #[test]
    fn a_key_of_two_secrets_stays_the_older_ones() {
        let late = made_at(20, secret("a", "copy", &[KEY], &[]));
        let early = made_at(10, secret("b", "own", &[KEY], &[]));
        let found = gathered(vec![late, early]);
        assert_eq!(found.keys.len(), 1);
        assert_eq!(found.keys[0].namespace, "b");
        assert!(mistakes(&found)[0].starts_with("a/copy: entry `key-0`"));
    }

    #[test]
    fn no_namespace_crowds_out_others() {
        let keys: Vec<String> = (0..1000).map(|n| format!("{KEY}{n}")).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let many = made_at(1, secret("a", "many", &keys, &[]));
        let one = made_at(
            2,
            secret("b", "one", &["one-key-of-another-namespace"], &[]),
        );
        let found = gathered(vec![many, one]);
        let of = |n: &str| found.keys.iter().filter(|k| k.namespace == n).count();
        assert_eq!((of("a"), of("b")), (MOST_OF_NAMESPACE, 1));
        assert_eq!(found.mistakes.len(), 1);
    }
}
