//! The last spec of this host, on disk: after a restart without the API server, the agent
//! serves from it, and it refuses older generations.

use crate::files::{self, Reserve};
use lamina_crds::Hop;
use lamina_crds::compute_node::{Route, RouteRevision, Slice, Standby};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// 2: signature, probe and manifest belong to the revisions of a route.
const FORMAT: u32 = 2;
const FILE_NAME: &str = "ledger.json";
/// Placements remembered after they are gone.
const REMEMBERED_PLACEMENTS: usize = 4096;

/// The spec of this host's ComputeNode, with its version.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Wish {
    /// UID of the ComputeNode.
    pub(crate) uid: String,
    /// Its generation.
    pub(crate) generation: i64,
    /// The operator's address.
    pub(crate) operator: String,
    /// Slices to hold.
    pub(crate) slices: Vec<Slice>,
    /// Routes to follow.
    pub(crate) routes: Vec<Route>,
    /// Blocks to fetch ahead.
    pub(crate) standby: Vec<Standby>,
}

/// The wish that this host follows.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Ledger {
    format: u32,
    /// UID of the ComputeNode that was last applied.
    pub(crate) uid: String,
    /// Generation last applied; -1 before the first.
    pub(crate) generation: i64,
    /// The operator's last address.
    pub(crate) operator: String,
    /// Slices to hold.
    pub(crate) slices: Vec<Slice>,
    /// Routes to follow.
    pub(crate) routes: Vec<Route>,
    /// Blocks to fetch ahead.
    pub(crate) standby: Vec<Standby>,
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
            standby: Vec::new(),
            newest: BTreeMap::new(),
        }
    }
}

/// A part of a spec that this host refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// The whole spec is older than the held one.
    #[error("generation {got} of the ComputeNode is older than {held}, which is held")]
    OldSpec {
        /// Generation offered.
        got: i64,
        /// Generation held.
        held: i64,
    },
    /// A slice of an outdated revision.
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
    /// The same revision of a route with another content.
    #[error(
        "the route of revision {revision} of placement {placement_uid} differs from the one held under that number; a change needs a new revision"
    )]
    ChangedRevision {
        /// UID of the Placement.
        placement_uid: String,
        /// Revision offered.
        revision: i64,
    },
    /// The same Placement under the name of another model.
    #[error(
        "placement {placement_uid} routes {held}, not {got}; another model needs another placement"
    )]
    ChangedModel {
        /// UID of the Placement.
        placement_uid: String,
        /// Model offered.
        got: String,
        /// Model held.
        held: String,
    },
    /// A route back to an older revision.
    #[error("the route of placement {placement_uid} goes back from revision {held} to {got}")]
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
    /// The ledger after `wish`, and the refused parts. If a part is refused, the held part stays.
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
            standby: wish.standby.clone(),
            newest,
        };
        (next, refusals)
    }

    fn admit_slices(&self, offered: &[Slice], refusals: &mut Vec<Refusal>) -> Vec<Slice> {
        let mut admitted = Vec::with_capacity(offered.len());
        for slice in offered {
            match self.slices.iter().find(|held| same_place(held, slice)) {
                Some(held) if is_readdressed(held, slice) => admitted.push(slice.clone()),
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
        let admit = |route: &Route| {
            let held = self
                .routes
                .iter()
                .find(|held| held.placement_uid == route.placement_uid);
            held.map_or_else(|| route.clone(), |held| admit_route(held, route, refusals))
        };
        offered.iter().map(admit).collect()
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

/// Whether `offered` equals `held` except for the address of the next host (a restarted pod has a
/// new one) and the batching. A new field must be considered here.
fn is_readdressed(held: &Slice, offered: &Slice) -> bool {
    let Slice {
        placement_uid,
        model,
        revision,
        segment,
        blocks,
        inputs,
        outputs,
        next,
        callers,
        // Follows the spec, and changes nothing that is loaded.
        batching: _,
        encoding,
    } = held;
    let same_next = match (next, &offered.next) {
        (Some(held), Some(offered)) => same_host(held, offered),
        (held, offered) => held.is_none() && offered.is_none(),
    };
    // An operator that did not name callers may be followed by one that does.
    let same_callers = callers.is_none() || *callers == offered.callers;
    same_next
        && same_callers
        && *placement_uid == offered.placement_uid
        && *model == offered.model
        && *revision == offered.revision
        && *segment == offered.segment
        && *blocks == offered.blocks
        && *inputs == offered.inputs
        && *outputs == offered.outputs
        && *encoding == offered.encoding
}

/// As [`is_readdressed`], for a revision of a route and its first host.
fn is_rerouted(held: &RouteRevision, offered: &RouteRevision) -> bool {
    let RouteRevision {
        revision,
        first,
        path,
        inputs,
        outputs,
        exits,
        encoding,
        error,
        probe,
        manifest,
    } = held;
    same_host(first, &offered.first)
        && *revision == offered.revision
        && *path == offered.path
        && *inputs == offered.inputs
        && *outputs == offered.outputs
        && *exits == offered.exits
        && *encoding == offered.encoding
        && *error == offered.error
        && *probe == offered.probe
        && *manifest == offered.manifest
}

fn same_host(held: &Hop, offered: &Hop) -> bool {
    let Hop { node, address: _ } = held;
    *node == offered.node
}

/// The parts of `offered` that may replace `held`, which is of the same Placement. A new field must
/// be considered here.
fn admit_route(held: &Route, offered: &Route, refusals: &mut Vec<Refusal>) -> Route {
    let Route {
        placement_uid,
        namespace,
        name,
        active_revision,
        verify_revision,
        refuse,
        exits,
        revisions,
    } = offered;
    if (namespace, name) != (&held.namespace, &held.name) {
        refusals.push(Refusal::ChangedModel {
            placement_uid: placement_uid.clone(),
            got: format!("{namespace}/{name}"),
            held: format!("{}/{}", held.namespace, held.name),
        });
        return held.clone();
    }
    // 0 means that nothing serves, which leads back to nothing.
    if *active_revision != 0 && *active_revision < held.active_revision {
        refusals.push(Refusal::OldRoute {
            placement_uid: placement_uid.clone(),
            got: *active_revision,
            held: held.active_revision,
        });
        // Data that must not leave this host must not leave it on the old path either.
        let refuse = refuse.clone().or_else(|| held.refuse.clone());
        return Route {
            refuse,
            ..held.clone()
        };
    }
    let admit = |offered: &RouteRevision| {
        let mut held = held.revisions.iter();
        match held.find(|held| held.revision == offered.revision) {
            Some(held) if !is_rerouted(held, offered) => {
                refusals.push(Refusal::ChangedRevision {
                    placement_uid: placement_uid.clone(),
                    revision: offered.revision,
                });
                held.clone()
            }
            _ => offered.clone(),
        }
    };
    Route {
        placement_uid: placement_uid.clone(),
        namespace: namespace.clone(),
        name: name.clone(),
        active_revision: *active_revision,
        verify_revision: *verify_revision,
        refuse: refuse.clone(),
        exits: exits.clone(),
        revisions: revisions.iter().map(admit).collect(),
    }
}

/// A ledger of any format, read as far as possible.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    format: u32,
    #[serde(default)]
    uid: String,
    #[serde(default = "before_the_first")]
    generation: i64,
    #[serde(default)]
    operator: String,
    #[serde(default)]
    slices: Vec<Value>,
    #[serde(default)]
    routes: Vec<Value>,
    #[serde(default)]
    standby: Vec<Value>,
    #[serde(default)]
    newest: BTreeMap<String, i64>,
}

const fn before_the_first() -> i64 {
    -1
}

impl Written {
    /// The parts that this version can follow. If that is not all, the generation counts as not
    /// applied, so that the API server's version fills the gaps.
    fn upgraded(self) -> Ledger {
        let offered = (self.slices.len(), self.routes.len());
        let slices = readable(self.slices, "slice");
        let routes = if self.format < FORMAT {
            if !self.routes.is_empty() {
                tracing::info!("the routes in the ledger are of an older version; left out");
            }
            Vec::new()
        } else {
            readable(self.routes, "route")
        };
        let standby = readable(self.standby, "standby");
        let is_whole = offered == (slices.len(), routes.len());
        Ledger {
            format: FORMAT,
            uid: self.uid,
            generation: self.generation.saturating_sub(i64::from(!is_whole)),
            operator: self.operator,
            slices,
            routes,
            standby,
            newest: self.newest,
        }
    }
}

/// Those of `items` that can be read.
fn readable<T: DeserializeOwned>(items: Vec<Value>, kind: &str) -> Vec<T> {
    let read = |item| match serde_json::from_value(item) {
        Ok(item) => Some(item),
        Err(error) => {
            tracing::warn!(%error, "a {kind} in the ledger is of another version; left out");
            None
        }
    };
    items.into_iter().filter_map(read).collect()
}

/// The ledger's file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} the ledger {path}; free space in the cache folder or repair it", path = path.display())]
pub(crate) struct LedgerError {
    action: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl LedgerError {
    /// Whether there is no space for it.
    pub(crate) fn is_full(&self) -> bool {
        files::is_full(&self.source)
    }
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

    /// The last written ledger; empty if there is none, or if it cannot be read, since
    /// the API server has everything. The readable parts of an older format are kept.
    /// Blocks.
    ///
    /// # Errors
    /// The file exists but cannot be read.
    pub(crate) fn read(&self) -> Result<Ledger, LedgerError> {
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Ledger::default()),
            Err(e) => return Err(self.error("read", e)),
        };
        match serde_json::from_slice::<Written>(&text) {
            Ok(written) if written.format <= FORMAT => Ok(written.upgraded()),
            Ok(Written { format, .. }) => {
                tracing::warn!(format, "the ledger is of a newer version; starting anew");
                Ok(Ledger::default())
            }
            Err(error) => {
                tracing::warn!(%error, "the ledger is damaged; starting anew");
                Ok(Ledger::default())
            }
        }
    }

    /// Replaces the file as a whole, so that a crash leaves the old or the new one.
    /// Blocks until it is on disk.
    ///
    /// # Errors
    /// The disk is full, or the folder missing or read-only.
    fn write(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let text = serde_json::to_vec_pretty(ledger).map_err(io::Error::from);
        let reserve = Reserve::beside(&self.path);
        let written = text.and_then(|text| match files::replace(&self.path, &text) {
            Err(error) if files::is_full(&error) => {
                reserve.give_up()?;
                files::replace(&self.path, &text)
            }
            written => written,
        });
        // For the next time, if there is space.
        reserve.take();
        written.map_err(|e| self.error("write", e))
    }

    /// As [`LedgerFile::write`], off the runtime's threads.
    ///
    /// # Errors
    /// As there.
    pub(crate) async fn store(&self, ledger: &Ledger) -> Result<(), LedgerError> {
        let (file, ledger) = (self.clone(), ledger.clone());
        let written = tokio::task::spawn_blocking(move || file.write(&ledger)).await;
        written.unwrap_or_else(|e| Err(self.error("write", io::Error::other(e))))
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
mod tests;
