//! Which mistakes in Secrets of keys are reported, and when again. Pure.

use super::secret::Mistake;
use crate::state::ids::ObjectId;
use crate::state::notice::{Notice, Regarding};
use lamina_crds::reasons::API_KEY_INVALID;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// An uncorrected mistake is reported again after this time: Events are kept for an hour.
pub(super) const AGAIN: Duration = Duration::from_secs(1800);
/// Secrets reported at once; the others follow later.
const AT_ONCE: usize = 64;
/// Most Secrets whose reported mistakes are remembered.
const MOST: usize = 4096;

/// The reported mistakes.
#[derive(Debug, Default)]
pub(super) struct Told {
    notes: BTreeMap<ObjectId, (String, Instant)>,
}

impl Told {
    /// What to report of `mistakes` at `now`: one per Secret, so that one with many entries does
    /// not flood.
    pub(super) fn news(&mut self, mistakes: &[(ObjectId, Mistake)], now: Instant) -> Vec<Notice> {
        let mut notes: BTreeMap<&ObjectId, (String, usize)> = BTreeMap::new();
        for (id, mistake) in mistakes {
            let first = || (mistake.to_string(), 0);
            notes.entry(id).or_insert_with(first).1 += 1;
        }
        self.notes.retain(|id, _| notes.contains_key(id));
        let mut news = Vec::new();
        for (id, (first, count)) in notes {
            if news.len() == AT_ONCE {
                break;
            }
            let note = match count {
                1 => first,
                _ => format!("{first}; and {} more", count - 1),
            };
            let is_old = |(told, at): &(String, Instant)| {
                *told == note && now.saturating_duration_since(*at) < AGAIN
            };
            if self.notes.get(id).is_some_and(is_old) {
                continue;
            }
            if self.notes.len() < MOST || self.notes.contains_key(id) {
                self.notes.insert(id.clone(), (note.clone(), now));
            }
            let about = Regarding {
                kind: "Secret",
                id: id.clone(),
            };
            news.push(Notice::warning(about, API_KEY_INVALID, "ReadKeys", note));
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(name: &str) -> ObjectId {
        ObjectId {
            namespace: "lab".into(),
            name: name.into(),
            uid: name.into(),
        }
    }

    fn key(entry: &str) -> Mistake {
        Mistake::Key(entry.into())
    }

    #[test]
    fn a_mistake_is_told_about_its_secret_once_and_again_while_it_lasts() {
        let (mut told, now) = (Told::default(), Instant::now());
        let mistakes = [(secret("cam"), key("key"))];
        let news = told.news(&mistakes, now);
        assert_eq!(news.len(), 1);
        let Notice {
            regarding,
            warning,
            reason,
            note,
            ..
        } = &news[0];
        assert_eq!((regarding.kind, &regarding.id), ("Secret", &secret("cam")));
        assert!(*warning && *reason == API_KEY_INVALID);
        assert!(note.starts_with("entry `key` is no key"), "{note}");
        assert!(told.news(&mistakes, now).is_empty());
        assert_eq!(told.news(&mistakes, now + AGAIN).len(), 1);
        // Corrected, and made again.
        assert!(told.news(&[], now + AGAIN).is_empty());
        assert_eq!(told.news(&mistakes, now + AGAIN).len(), 1);
    }

    #[test]
    fn many_mistakes_are_no_flood() {
        let (mut told, now) = (Told::default(), Instant::now());
        let of_one: Vec<_> = (0..1000)
            .map(|n| (secret("cam"), key(&n.to_string())))
            .collect();
        let news = told.news(&of_one, now);
        assert_eq!(news.len(), 1);
        assert!(news[0].note.ends_with("and 999 more"), "{}", news[0].note);
        let of_many: Vec<_> = (0..100)
            .map(|n| (secret(&n.to_string()), key("key")))
            .collect();
        assert_eq!(told.news(&of_many, now).len(), AT_ONCE);
        assert_eq!(told.news(&of_many, now).len(), 100 - AT_ONCE);
    }
}
