//! A model for which the decision code panics is set aside, and all others go on.
//!
//! The panic is our bug, but a tenant can choose the model that triggers it, so it must not
//! affect anyone else. A panic is caught only here, because its partial results can be told
//! apart and discarded: the decisions and the memory of that model.

use super::Look;
use crate::state::decision::{Change, Entries, EntryAt, Haste};
use crate::state::ids::{self, ObjectId};
use crate::state::memory::{Aside, Memory};
use crate::state::notice::{Notice, Regarding};
use crate::state::plans;
use crate::status::model as model_status;
use lamina_crds::{DnnModel, reasons};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Decides about one model.
pub(super) type EachModel<'f> = &'f dyn for<'a> Fn(&mut Look<'a>, &'a DnnModel, &mut Memory);

/// First pause before a model that was set aside is tried again; it doubles,
const FIRST_PAUSE_SECONDS: f64 = 30.0;
/// up to this; a changed spec is tried at once.
const LONGEST_PAUSE_SECONDS: f64 = 960.0;

/// Calls `each` for `model`, unless it panicked on it recently.
pub(super) fn decide_about<'a>(
    look: &mut Look<'a>,
    model: &'a DnnModel,
    memory: &mut Memory,
    each: EachModel<'_>,
) {
    let uid = ids::uid(&model.metadata).to_owned();
    let known = memory.aside.get(&uid);
    let known = known.filter(|a| a.generation == model.metadata.generation);
    if let Some(aside) = known.filter(|a| look.snapshot.seconds_since(a.at) < pause(a.times)) {
        let why = aside.why.clone();
        look.keep_aside(model, why);
        return;
    }
    let times = known.map_or(0, |aside| aside.times);
    let decided = std::mem::take(&mut look.out);
    let wished = std::mem::take(&mut look.wishes);
    let done = catch_unwind(AssertUnwindSafe(|| each(look, model, memory)));
    let more = std::mem::replace(&mut look.out, decided);
    let more_wished = std::mem::replace(&mut look.wishes, wished);
    match done {
        Ok(()) => {
            memory.aside.remove(&uid);
            look.out.append(more);
            look.wishes.append(more_wished);
        }
        Err(cause) => {
            memory.models.remove(&uid);
            memory.placements.retain(|key, _| key.model_uid != uid);
            let why = why(&*cause);
            if times == 0 {
                let regarding = Regarding::model(ObjectId::of(&model.metadata));
                let reason = reasons::DECISION_FAILED;
                let notice = Notice::warning(regarding, reason, "Decide", why.clone());
                look.out.write(Haste::Report, Change::Nothing, vec![notice]);
            }
            let aside = Aside {
                generation: model.metadata.generation,
                at: look.snapshot.now,
                times: times.saturating_add(1),
                why: why.clone(),
            };
            memory.aside.insert(uid, aside);
            look.keep_aside(model, why);
        }
    }
}

/// The pause after this many panics.
fn pause(times: u32) -> f64 {
    let doubled = 2f64.powi(i32::try_from(times.saturating_sub(1)).unwrap_or(i32::MAX));
    (FIRST_PAUSE_SECONDS * doubled).min(LONGEST_PAUSE_SECONDS)
}

fn why(cause: &(dyn Any + Send)) -> String {
    let text = cause.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| cause.downcast_ref::<&str>().copied());
    format!(
        "deciding about this model broke off ({}), which is a bug; what serves stays as it is, \
         but is not moved. Please report it with the operator's log; a changed spec is tried at \
         once",
        text.unwrap_or("no message")
    )
}

impl<'a> Look<'a> {
    /// Hosts keep what they have of the model.
    fn keep_aside(&mut self, model: &'a DnnModel, why: String) {
        let id = ObjectId::of(&model.metadata);
        let mut entries = Vec::new();
        let placements: Vec<_> = self.index.placements_of(&id.uid).collect();
        for placement in placements {
            let (uid, entry) = (ids::uid(&placement.metadata), &placement.spec.entry);
            self.wanted.insert(uid.to_owned());
            self.keep_as_told(placement);
            self.out.interest.entries.insert(entry.clone());
            if let Some(address) = self.snapshot.address(entry) {
                let is_here = self.snapshot.is_alive(entry) || self.snapshot.is_starting();
                entries.push(EntryAt {
                    node: entry.clone(),
                    address: address.to_owned(),
                    placement_uid: uid.to_owned(),
                    serves: is_here && plans::active(placement).is_some(),
                });
            }
        }
        let serves = entries.iter().any(|e| e.serves);
        let reason = if serves {
            String::new()
        } else {
            format!("failed: {}", reasons::DECISION_FAILED)
        };
        let listed = Entries {
            entries,
            reason,
            coming: false,
        };
        let name = (id.namespace.clone(), id.name.clone());
        self.out.directory.insert(name, listed);
        let before = model.status.clone().unwrap_or_default();
        let reason = reasons::DECISION_FAILED;
        let status = model_status::set_aside(self.snapshot, &before, reason, why);
        if before != status {
            let change = Change::ModelStatus {
                id,
                status: Box::new(status),
            };
            self.out.write(Haste::Report, change, Vec::new());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound() {
        let pauses: Vec<f64> = [1, 2, 3, 6, 7, u32::MAX].map(pause).to_vec();
        assert_eq!(pauses, [30.0, 60.0, 120.0, 960.0, 960.0, 960.0]);
    }
}
