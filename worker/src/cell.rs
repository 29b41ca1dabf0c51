//! What this process does to itself before it opens a model.

use rustix::process::{Signal, set_parent_process_death_signal};
use std::fs;

/// Dies first where memory is short, and with the agent that started it.
pub(crate) fn be_expendable() {
    // Raising the score needs no right; where it fails, nothing is lost.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
    // Nobody else bounds its time and room. Fails for no valid signal.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
}
