//! Loads that never finished: a slice that takes more memory than the container has ends the agent,
//! which would load it again at each start. Loads in progress are recorded on disk, so that the
//! next start knows.

use lamina_model::Digest;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// A single end of the agent during a load may be a coincidence, such as a power failure.
const ENDS: u32 = 2;
/// A slice that ended the agent is not loaded for this long. The operator avoids the host for a
/// little longer (`LOAD_RETRY_SECONDS`).
const PAUSE: Duration = Duration::from_secs(600);

/// A slice that is not loaded for now.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the agent was ended {times} times while it loaded this slice ({mib:.1} MiB of blocks), most \
     likely for want of memory; it is tried again after {} min. A smaller slice fits, or a larger \
     memory limit of the agents", PAUSE.as_secs() / 60
)]
pub(crate) struct Deadly {
    times: u32,
    mib: Mib,
}

/// Bytes, displayed in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mib(u64);

impl std::fmt::Display for Mib {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&(self.0 as f64 / f64::from(1 << 20)), f)
    }
}

/// The records of loads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attempts {
    folder: Option<PathBuf>,
    /// Files of loads in progress.
    now: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Attempts {
    /// In a folder of `dir`, which has the records of earlier processes.
    ///
    /// # Errors
    /// The folder cannot be created.
    pub(crate) fn in_dir(dir: &Path) -> io::Result<Self> {
        let folder = dir.join("loading");
        fs::create_dir_all(&folder)?;
        Ok(Self {
            folder: Some(folder),
            now: Arc::default(),
        })
    }

    /// Records that `blocks` of `model`, with `bytes` in all, are being loaded, until the
    /// result is dropped. If the record cannot be written, the load proceeds.
    ///
    /// # Errors
    /// This load ended the agent recently.
    pub(super) fn begin(
        &self,
        model: &str,
        blocks: &[String],
        bytes: u64,
    ) -> Result<Option<Attempt>, Deadly> {
        let Some(folder) = &self.folder else {
            return Ok(None);
        };
        let name = Digest::of(format!("{model} {}", blocks.join(" ")).as_bytes());
        let file = folder.join(name.to_string());
        let times = ends(&file, SystemTime::now());
        if times >= ENDS {
            return Err(Deadly {
                times,
                mib: Mib(bytes),
            });
        }
        if let Err(error) = fs::write(&file, (times + 1).to_string()) {
            tracing::debug!(%error, "that a slice is being loaded is not noted");
        }
        lock(&self.now).insert(file.clone());
        Ok(Some(Attempt {
            file,
            now: Arc::clone(&self.now),
        }))
    }

    /// A process that ends properly drops its records.
    pub(crate) fn give_up(&self) {
        for file in std::mem::take(&mut *lock(&self.now)) {
            // If it remains, it counts as one end too many.
            let _ = fs::remove_file(file);
        }
    }
}

fn lock(files: &Mutex<BTreeSet<PathBuf>>) -> MutexGuard<'_, BTreeSet<PathBuf>> {
    files.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How often the agent ended, by the record in `file`.
fn ends(file: &Path, now: SystemTime) -> u32 {
    let Ok(text) = fs::read_to_string(file) else {
        return 0;
    };
    let written = fs::metadata(file).and_then(|m| m.modified());
    let age = written.ok().and_then(|at| now.duration_since(at).ok());
    if age.is_some_and(|age| age > PAUSE) {
        return 0;
    }
    text.trim().parse().unwrap_or(0)
}

/// A load in progress.
#[derive(Debug)]
pub(super) struct Attempt {
    file: PathBuf,
    now: Arc<Mutex<BTreeSet<PathBuf>>>,
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if lock(&self.now).remove(&self.file) {
            // See above.
            let _ = fs::remove_file(&self.file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A killed process drops nothing.
    fn end_while_loading(attempts: &Attempts) {
        let blocks = ["a".to_owned()];
        std::mem::forget(attempts.begin("default/m", &blocks, 1 << 20).unwrap());
    }

    #[test]
    fn what_ended_the_agent_twice_is_not_loaded_again() {
        let dir = tempfile::tempdir().unwrap();
        let attempts = Attempts::in_dir(dir.path()).unwrap();
        let (blocks, others) = (["a".to_owned()], ["b".to_owned()]);
        for _ in 0..3 {
            drop(attempts.begin("default/m", &blocks, 1 << 20).unwrap());
        }
        end_while_loading(&attempts);
        end_while_loading(&Attempts::in_dir(dir.path()).unwrap());
        let again = Attempts::in_dir(dir.path()).unwrap();
        let error = again.begin("default/m", &blocks, 3 << 19).unwrap_err();
        let told = error.to_string();
        assert!(
            told.contains("2 times") && told.contains("1.5 MiB"),
            "{told}"
        );
        assert!(again.begin("default/m", &others, 1).is_ok());
        assert!(again.begin("default/n", &blocks, 1).is_ok());
    }

    #[test]
    fn an_end_on_purpose_counts_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let attempts = Attempts::in_dir(dir.path()).unwrap();
        for _ in 0..4 {
            end_while_loading(&attempts);
            attempts.give_up();
        }
        for _ in 0..2 {
            end_while_loading(&Attempts::in_dir(dir.path()).unwrap());
        }
        attempts.give_up();
        assert!(attempts.begin("default/m", &["a".to_owned()], 1).is_err());
    }

    #[test]
    fn after_a_while_it_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        fs::write(&file, "2").unwrap();
        let now = SystemTime::now();
        assert_eq!(ends(&file, now), 2);
        assert_eq!(ends(&file, now + PAUSE + Duration::from_secs(1)), 0);
        // A clock that was set back.
        assert_eq!(ends(&file, now - PAUSE), 2);
    }
}
