//! What this host was told last, on disk: the agent serves from it after a
//! restart without the API server, and refuses to be led back.

use lamina_crds::compute_node::{Route, Slice};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FORMAT: u32 = 1;
const FILE_NAME: &str = "ledger.json";
/// Placements remembered after they are gone.
const REMEMBERED_PLACEMENTS: usize = 4096;

/// The spec of this host's ComputeNode, with what tells old from new.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Wish {
    /// UID of the ComputeNode.
    pub(crate) uid: String,
    /// Its generation.
    pub(crate) generation: i64,
    /// Where the operator listens.
    pub(crate) operator: String,
    /// Slices to hold.
    pub(crate) slices: Vec<Slice>,
    /// Routes to follow.
    pub(crate) routes: Vec<Route>,
}

/// What this host holds to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ledger {
    format: u32,
    /// UID of the ComputeNode that spoke last.
    pub(crate) uid: String,
    /// Generation that was taken up last; -1 before the first.
    pub(crate) generation: i64,
    /// Where the operator listened last.
    pub(crate) operator: String,
    /// Slices to hold.
    pub(crate) slices: Vec<Slice>,
    /// Routes to follow.
    pub(crate) routes: Vec<Route>,
    /// Highest revision held of each Placement, by UID.
    pub(crate) newest: BTreeMap<String, i64>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            format: FORMAT,
            uid: String::new(),
            generation: -1,
            operator: String::new(),
            slices: Vec::new(),
            routes: Vec::new(),
            newest: BTreeMap::new(),
        }
    }
}

/// Something in a spec that this host does not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The whole spec is older than what is held.
    #[error("generation {got} of the ComputeNode is older than {held}, which is held")]
    OldSpec {
        /// Generation offered.
        got: i64,
        /// Generation held.
        held: i64,
    },
    /// A slice of a revision that was left behind.
    #[error(
        "revision {revision} of placement {placement_uid} (segment {segment}) is older than {newest}, which this host has held"
    )]
    OldSlice {
        /// UID of the Placement.
        placement_uid: String,
        /// Revision offered.
        revision: i64,
        /// Segment offered.
        segment: u32,
        /// Newest revision held.
        newest: i64,
    },
    /// The same revision with another content.
    #[error(
        "revision {revision} of placement {placement_uid} (segment {segment}) differs from the one held under that number; a change needs a new revision"
    )]
    ChangedSlice {
        /// UID of the Placement.
        placement_uid: String,
        /// Revision offered.
        revision: i64,
        /// Segment offered.
        segment: u32,
    },
    /// A route that leads back to an older revision.
    #[error("the route of placement {placement_uid} leads back from revision {held} to {got}")]
    OldRoute {
        /// UID of the Placement.
        placement_uid: String,
        /// Revision offered.
        got: i64,
        /// Revision held.
        held: i64,
    },
}

impl Ledger {
    /// What this host holds to after `wish`, and what of it is refused. Where a
    /// part is refused, the part held before stays.
    pub(crate) fn admit(&self, wish: &Wish) -> (Self, Vec<Refusal>) {
        if wish.uid == self.uid && wish.generation < self.generation {
            let refusal = Refusal::OldSpec {
                got: wish.generation,
                held: self.generation,
            };
            return (self.clone(), vec![refusal]);
        }
        let mut refusals = Vec::new();
        let slices = self.admit_slices(&wish.slices, &mut refusals);
        let routes = self.admit_routes(&wish.routes, &mut refusals);
        let newest = self.newest_with(&slices);
        let next = Self {
            format: FORMAT,
            uid: wish.uid.clone(),
            generation: wish.generation,
            operator: wish.operator.clone(),
            slices,
            routes,
            newest,
        };
        (next, refusals)
    }

    fn admit_slices(&self, offered: &[Slice], refusals: &mut Vec<Refusal>) -> Vec<Slice> {
        let mut admitted = Vec::with_capacity(offered.len());
        for slice in offered {
            match self.slices.iter().find(|held| same_place(held, slice)) {
                Some(held) if same_content(held, slice) => admitted.push(slice.clone()),
                Some(held) => {
                    refusals.push(Refusal::ChangedSlice {
                        placement_uid: slice.placement_uid.clone(),
                        revision: slice.revision,
                        segment: slice.segment,
                    });
                    admitted.push(held.clone());
                }
                None => match self.newest.get(&slice.placement_uid) {
                    Some(&newest) if slice.revision < newest => refusals.push(Refusal::OldSlice {
                        placement_uid: slice.placement_uid.clone(),
                        revision: slice.revision,
                        segment: slice.segment,
                        newest,
                    }),
                    _ => admitted.push(slice.clone()),
                },
            }
        }
        admitted
    }

    fn admit_routes(&self, offered: &[Route], refusals: &mut Vec<Refusal>) -> Vec<Route> {
        let mut admitted = Vec::with_capacity(offered.len());
        for route in offered {
            let held = self
                .routes
                .iter()
                .find(|held| held.placement_uid == route.placement_uid);
            match held {
                // 0 says that nothing serves, which leads back to nothing.
                Some(held)
                    if route.active_revision != 0
                        && route.active_revision < held.active_revision =>
                {
                    refusals.push(Refusal::OldRoute {
                        placement_uid: route.placement_uid.clone(),
                        got: route.active_revision,
                        held: held.active_revision,
                    });
                    admitted.push(held.clone());
                }
                _ => admitted.push(route.clone()),
            }
        }
        admitted
    }

    fn newest_with(&self, slices: &[Slice]) -> BTreeMap<String, i64> {
        let mut newest = self.newest.clone();
        if newest.len() > REMEMBERED_PLACEMENTS {
            newest.retain(|uid, _| slices.iter().any(|s| s.placement_uid == *uid));
        }
        for slice in slices {
            let held = newest.entry(slice.placement_uid.clone()).or_default();
            *held = (*held).max(slice.revision);
        }
        newest
    }
}

fn same_place(a: &Slice, b: &Slice) -> bool {
    (&a.placement_uid, a.revision, a.segment) == (&b.placement_uid, b.revision, b.segment)
}

/// Whether two slices compute the same and hand it to the same host. An address
/// may change: a pod that restarts has a new one.
fn same_content(a: &Slice, b: &Slice) -> bool {
    let next = |s: &Slice| s.next.as_ref().map(|hop| hop.node.clone());
    a.blocks == b.blocks && a.inputs == b.inputs && a.outputs == b.outputs && next(a) == next(b)
}

/// The ledger's file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the ledger {path}; free or mend the cache folder", path = path.display())]
pub(crate) struct LedgerError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The ledger's file in the cache folder.
#[derive(Debug, Clone)]
pub(crate) struct LedgerFile {
    path: PathBuf,
}

impl LedgerFile {
    /// The file in `cache_dir`.
    pub(crate) fn in_dir(cache_dir: &Path) -> Self {
        Self {
            path: cache_dir.join(FILE_NAME),
        }
    }

    /// The ledger as it was written last; an empty one where there is none, or
    /// where it cannot be understood, since the API server has it all.
    ///
    /// # Errors
    /// The file is there and cannot be read.
    pub(crate) fn read(&self) -> Result<Ledger, LedgerError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ledger::default()),
            Err(e) => return Err(self.error("read", e)),
        };
        match serde_json::from_slice::<Ledger>(&text) {
            Ok(ledger) if ledger.format <= FORMAT => Ok(ledger),
            Ok(ledger) => {
                tracing::warn!(
                    format = ledger.format,
                    "the ledger is of a newer version; starting anew"
                );
                Ok(Ledger::default())
            }
            Err(error) => {
                tracing::warn!(%error, "the ledger is damaged; starting anew");
                Ok(Ledger::default())
            }
        }
    }

    /// Replaces the file as a whole, so that a crash leaves the old or the new one.
    ///
    /// # Errors
    /// The folder is full, missing or read-only.
    pub(crate) fn write(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let new = self.path.with_extension("new");
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec_pretty(ledger)?;
            let mut file = fs::File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().map_err(|e| self.error("write", e))
    }

    fn error(&self, action: &'static str, source: io::Error) -> LedgerError {
        LedgerError {
            action,
            path: self.path.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{route, slice};

    fn wish(generation: i64, slices: &[Slice], routes: &[Route]) -> Wish {
        Wish {
            uid: "node-uid".into(),
            generation,
            operator: "10.0.0.3:9000".into(),
            slices: slices.to_vec(),
            routes: routes.to_vec(),
        }
    }

    fn admitted(ledger: &Ledger, wish: &Wish) -> Ledger {
        let (next, refusals) = ledger.admit(wish);
        assert_eq!(refusals, []);
        next
    }

    #[test]
    fn two_revisions_stand_side_by_side_and_the_older_goes() {
        let (old, new) = (slice("u", 1, 0), slice("u", 2, 0));
        let first = admitted(
            &Ledger::default(),
            &wish(1, std::slice::from_ref(&old), &[]),
        );
        let both = admitted(&first, &wish(2, &[old.clone(), new.clone()], &[]));
        let last = admitted(&both, &wish(3, std::slice::from_ref(&new), &[]));
        assert_eq!(last.slices, std::slice::from_ref(&new));
        // Once it is gone it does not come back.
        let (kept, refusals) = last.admit(&wish(4, &[old, new.clone()], &[]));
        assert_eq!(kept.slices, [new]);
        assert!(refusals[0].to_string().contains("is older than 2"));
    }

    #[test]
    fn a_revision_keeps_its_content() {
        let held = slice("u", 1, 0);
        let ledger = admitted(
            &Ledger::default(),
            &wish(1, std::slice::from_ref(&held), &[]),
        );
        let mut changed = held.clone();
        changed.blocks[0].digest = "b".repeat(64);
        let (kept, refusals) = ledger.admit(&wish(2, &[changed], &[]));
        assert_eq!(kept.slices, std::slice::from_ref(&held));
        assert!(
            refusals[0]
                .to_string()
                .contains("a change needs a new revision")
        );
        // A new address of the next host is no new content.
        let mut moved = held;
        if let Some(next) = &mut moved.next {
            next.address = "10.9.9.9:8001".into();
        }
        let ledger = admitted(&ledger, &wish(3, std::slice::from_ref(&moved), &[]));
        assert_eq!(ledger.slices, [moved]);
    }

    #[test]
    fn another_placement_starts_anew() {
        let ledger = admitted(&Ledger::default(), &wish(1, &[slice("u", 7, 0)], &[]));
        let again = slice("recreated", 1, 0);
        let ledger = admitted(&ledger, &wish(2, std::slice::from_ref(&again), &[]));
        assert_eq!(ledger.slices, [again]);
    }

    #[test]
    fn an_older_spec_is_refused_as_a_whole() {
        let ledger = admitted(&Ledger::default(), &wish(5, &[slice("u", 2, 0)], &[]));
        let (kept, refusals) = ledger.admit(&wish(4, &[], &[]));
        assert_eq!(kept, ledger);
        assert_eq!(refusals, [Refusal::OldSpec { got: 4, held: 5 }]);
        // A ComputeNode that was deleted and made again counts from 1.
        let recreated = Wish {
            uid: "other".into(),
            ..wish(1, &[slice("u", 2, 0)], &[])
        };
        assert_eq!(admitted(&ledger, &recreated).generation, 1);
    }

    #[test]
    fn a_route_never_leads_back() {
        let ledger = admitted(&Ledger::default(), &wish(1, &[], &[route("u", "m", 3)]));
        let (kept, refusals) = ledger.admit(&wish(2, &[], &[route("u", "m", 2)]));
        assert_eq!(kept.routes, ledger.routes);
        assert!(refusals[0].to_string().contains("from revision 3 to 2"));
        admitted(&ledger, &wish(2, &[], &[route("u", "m", 0)]));
    }

    #[test]
    fn the_file_survives_a_restart_and_damage() {
        let dir = tempfile::tempdir().unwrap();
        let file = LedgerFile::in_dir(dir.path());
        assert_eq!(file.read().unwrap(), Ledger::default());
        let ledger = admitted(
            &Ledger::default(),
            &wish(1, &[slice("u", 1, 0)], &[route("u", "m", 1)]),
        );
        file.write(&ledger).unwrap();
        assert_eq!(file.read().unwrap(), ledger);
        fs::write(dir.path().join(FILE_NAME), b"{\"format\":1,").unwrap();
        assert_eq!(file.read().unwrap(), Ledger::default());
        let missing = LedgerFile::in_dir(&dir.path().join("nowhere"));
        assert!(
            missing
                .write(&ledger)
                .unwrap_err()
                .to_string()
                .contains("cannot write")
        );
    }
}
