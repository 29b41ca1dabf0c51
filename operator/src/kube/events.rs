//! Events in `events.k8s.io/v1`.
//!
//! kube's recorder merges Events with the same reason and keeps only the first text, but our
//! texts have the numbers that people need. Here only Events with the same text become a
//! series.

use crate::state::notice::{Notice, Regarding};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use lamina_crds::{GROUP, OPERATOR_MANAGER};
use std::collections::HashMap;

/// An Event that did not recur for this long ends its series.
const SERIES_PAUSE: SignedDuration = SignedDuration::from_mins(6);
/// Longest note that the API server takes.
const NOTE_LIMIT: usize = 1024;

/// Longest part of an object's name in its Events' names, which are limited to 253 characters.
const NAME_LIMIT: usize = 200;

/// A kind that is not one of ours.
const SECRET: &str = "Secret";

/// What makes two Events equal.
type Key = (Regarding, &'static str, String);

/// The recently published Events.
#[derive(Debug, Default)]
pub(crate) struct Series {
    recent: HashMap<Key, Recent>,
    published: u64,
}

#[derive(Debug, Clone)]
struct Recent {
    name: String,
    first: Timestamp,
    last: Timestamp,
    count: i32,
}

impl Series {
    /// The Event for `notice` at `now`: a new one, or the next of a series.
    pub(crate) fn event(&mut self, notice: &Notice, reporter: &str, now: Timestamp) -> Event {
        self.recent
            .retain(|_, r| now.duration_since(r.last) < SERIES_PAUSE);
        self.published += 1;
        let key = (notice.regarding.clone(), notice.reason, notice.note.clone());
        // An object's name may be as long as an Event's.
        let about: String = notice.regarding.id.name.chars().take(NAME_LIMIT).collect();
        let name = format!("{about}.{:x}{:x}", now.as_nanosecond(), self.published);
        let recent = self.recent.entry(key).or_insert(Recent {
            name,
            first: now,
            last: now,
            count: 0,
        });
        recent.count += 1;
        recent.last = now;
        build(notice, reporter, recent)
    }

    /// Forgets an Event that could not be written, so that the next one does not continue a series
    /// that does not exist.
    pub(crate) fn forget(&mut self, notice: &Notice) {
        let key = (notice.regarding.clone(), notice.reason, notice.note.clone());
        self.recent.remove(&key);
    }
}

fn build(notice: &Notice, reporter: &str, recent: &Recent) -> Event {
    let about = &notice.regarding;
    Event {
        metadata: ObjectMeta {
            name: Some(recent.name.clone()),
            // Events about cluster-scoped objects live in `default`.
            namespace: Some(namespace(about).to_owned()),
            ..ObjectMeta::default()
        },
        regarding: Some(ObjectReference {
            api_version: Some(api_version(about.kind)),
            kind: Some(about.kind.to_owned()),
            name: Some(about.id.name.clone()),
            namespace: Some(about.id.namespace.clone()).filter(|n| !n.is_empty()),
            uid: Some(about.id.uid.clone()),
            ..ObjectReference::default()
        }),
        type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(notice.reason.to_owned()),
        action: Some(notice.action.to_owned()),
        note: Some(shortened(&notice.note)),
        event_time: Some(MicroTime(recent.first)),
        reporting_controller: Some(format!("{GROUP}/{OPERATOR_MANAGER}")),
        reporting_instance: Some(reporter.to_owned()),
        series: (recent.count > 1).then_some(EventSeries {
            count: recent.count,
            last_observed_time: MicroTime(recent.last),
        }),
        ..Event::default()
    }
}

fn api_version(kind: &str) -> String {
    match kind {
        SECRET => "v1".to_owned(),
        _ => format!("{GROUP}/v1alpha1"),
    }
}

/// Namespace in which an Event about the object is kept.
pub(crate) fn namespace(about: &Regarding) -> &str {
    match about.id.namespace.as_str() {
        "" => "default",
        namespace => namespace,
    }
}

fn shortened(note: &str) -> String {
    if note.len() <= NOTE_LIMIT {
        return note.to_owned();
    }
    let mut end = NOTE_LIMIT - '…'.len_utf8();
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", &note[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::ids::ObjectId;

    fn notice(note: &str) -> Notice {
        Notice {
            regarding: Regarding::model(ObjectId {
                namespace: "default".into(),
                name: "net".into(),
                uid: "1".into(),
            }),
            warning: false,
            reason: lamina_crds::reasons::REDEPLOY_STARTED,
            action: "Redeploy",
            note: note.into(),
        }
    }

    #[test]
    fn only_the_same_text_becomes_a_series() {
        let (mut series, now) = (Series::default(), Timestamp::now());
        let first = series.event(&notice("50→5 Mbit/s"), "op", now);
        let other = series.event(&notice("5→50 Mbit/s"), "op", now);
        assert_ne!(first.metadata.name, other.metadata.name);
        assert_eq!((first.series, other.series), (None, None));
        let again = series.event(&notice("50→5 Mbit/s"), "op", now);
        assert_eq!(first.metadata.name, again.metadata.name);
        assert_eq!(again.series.map(|s| s.count), Some(2));
        let later = now + SignedDuration::from_mins(10);
        let new = series.event(&notice("50→5 Mbit/s"), "op", later);
        assert_ne!(first.metadata.name, new.metadata.name);
    }

    #[test]
    fn an_event_about_a_host_lives_in_default() {
        let mut about_host = notice("lost");
        about_host.regarding.kind = "ComputeNode";
        about_host.regarding.id.namespace.clear();
        let event = Series::default().event(&about_host, "op", Timestamp::now());
        assert_eq!(event.metadata.namespace.as_deref(), Some("default"));
        assert_eq!(event.regarding.unwrap().namespace, None);
    }

    #[test]
    fn an_event_names_the_version_of_what_it_is_about() {
        let mut about = notice("news");
        let version = |notice: &Notice| {
            let event = Series::default().event(notice, "op", Timestamp::now());
            event.regarding.unwrap().api_version.unwrap()
        };
        assert_eq!(version(&about), "serving.lamina.dev/v1alpha1");
        about.regarding.kind = "Secret";
        assert_eq!(version(&about), "v1");
    }

    #[test]
    fn the_longest_name_of_an_object_fits_into_that_of_its_event() {
        let mut about = notice("news");
        about.regarding.id.name = "m".repeat(253);
        let event = Series::default().event(&about, "op", Timestamp::now());
        let name = event.metadata.name.unwrap();
        assert!(name.len() <= 253, "{}", name.len());
        assert_eq!(event.regarding.unwrap().name.map(|n| n.len()), Some(253));
    }

    #[test]
    fn a_long_note_is_cut_between_characters() {
        let event = Series::default().event(&notice(&"→".repeat(600)), "op", Timestamp::now());
        let note = event.note.unwrap();
        assert!(
            note.len() <= NOTE_LIMIT && note.ends_with('…'),
            "{}",
            note.len()
        );
    }
}
