//! Restrictions of this process before it opens a model.

use rustix::process::{Signal, set_parent_process_death_signal};
use std::fs;

/// Dies first when memory is short, and together with the agent that started it.
pub(crate) fn be_expendable() {
    // Raising the score needs no privilege; a failure is harmless.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    // Nothing else limits its time and memory. Cannot fail for a valid signal.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}
