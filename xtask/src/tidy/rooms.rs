//! Which crate may use which, and which room of a crate may import which. To move a room, change
//! its row here.

use super::circles::circles;
use super::imports::Imports;
use std::collections::{BTreeMap, BTreeSet};

/// A crate of the workspace, in the folder of that name.
pub(super) struct Crate {
    pub(super) folder: &'static str,
    pub(super) package: &'static str,
    /// Crates of the workspace that its code may use, tests aside.
    pub(super) may_use: &'static [&'static str],
    /// Its rooms from the bottom up. A room is a file or folder, named by its path below the
    /// crate's root (`plan`, `controllers/plan`), with all its contents. It imports from the rows
    /// below its own, never from its own row or above; the root (`lib.rs`, `main.rs`) imports from
    /// all and nobody from it. Without rows, each file or folder beside the root is a room, and
    /// there may be no cycle between them.
    pub(super) rows: &'static [&'static [&'static str]],
    pub(super) circles: Circles,
}

/// Where files may import each other in cycles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Circles {
    /// Nowhere.
    None,
    /// Within a room.
    Within,
}

/// Every crate of the workspace.
pub(super) const CRATES: &[Crate] = &[
    Crate {
        folder: "model",
        package: "lamina-model",
        may_use: &[],
        rows: &[],
        circles: Circles::None,
    },
    Crate {
        folder: "crds",
        package: "lamina-crds",
        may_use: &[],
        rows: &[],
        circles: Circles::None,
    },
    Crate {
        folder: "identity",
        package: "lamina-identity",
        may_use: &[],
        rows: &[],
        circles: Circles::None,
    },
    Crate {
        folder: "proto",
        package: "lamina-proto",
        may_use: &[],
        rows: &[],
        circles: Circles::None,
    },
    Crate {
        folder: "sandbox",
        package: "lamina-sandbox",
        may_use: &["lamina-model"],
        rows: &[],
        circles: Circles::Within,
    },
    Crate {
        folder: "images",
        package: "lamina-images",
        may_use: &["lamina-model"],
        rows: &[],
        circles: Circles::None,
    },
    Crate {
        folder: "placement",
        package: "lamina-placement",
        may_use: &[],
        rows: &[
            &["limits", "objective", "random"],
            &["solution"],
            &["problem"],
            &["validate", "check", "dense"],
            &["strategy", "milp"],
            &["exact"],
            &["strategies"],
            &["solve", "regions"],
            &["explain", "adapt"],
        ],
        circles: Circles::None,
    },
    Crate {
        folder: "placement/bench",
        package: "lamina-placement-bench",
        may_use: &["lamina-placement"],
        rows: &[],
        circles: Circles::None,
    },
    Crate {
        folder: "profile",
        package: "lamina-profile",
        may_use: &["lamina-model", "lamina-placement"],
        rows: &[],
        circles: Circles::None,
    },
    Crate {
        folder: "plugin-host",
        package: "lamina-plugin-host",
        may_use: &["lamina-placement", "lamina-proto"],
        rows: &[
            &["terms"],
            &["error"],
            &["description", "incumbent"],
            &["ask"],
            &["plugin"],
            &["config"],
        ],
        circles: Circles::None,
    },
    Crate {
        folder: "cli",
        package: "kubectl-lamina",
        may_use: &["lamina-model", "lamina-placement", "lamina-profile"],
        rows: &[
            &["args", "report", "show", "table", "units"],
            &["mistake", "what_if", "compare", "join"],
            &["input", "render"],
            &["topology"],
            &["profile"],
            &["question"],
            &["plan"],
        ],
        circles: Circles::None,
    },
    Crate {
        folder: "torchscript",
        package: "lamina-torchscript",
        may_use: &["lamina-model"],
        rows: &[],
        circles: Circles::None,
    },
    Crate {
        folder: "worker/link",
        package: "lamina-worker-link",
        may_use: &["lamina-model", "lamina-sandbox"],
        rows: &[],
        circles: Circles::None,
    },
    Crate {
        folder: "worker",
        package: "lamina-worker",
        may_use: &[
            "lamina-images",
            "lamina-model",
            "lamina-sandbox",
            "lamina-torchscript",
            "lamina-worker-link",
        ],
        rows: &[],
        circles: Circles::Within,
    },
    Crate {
        folder: "node-agent",
        package: "lamina-node-agent",
        may_use: &[
            "lamina-crds",
            "lamina-identity",
            "lamina-model",
            "lamina-proto",
            "lamina-worker-link",
        ],
        rows: &[
            &["causes", "files", "selftest", "uplink", "worker"],
            &["net", "telemetry"],
            &["blobs", "measure", "door", "identity"],
            &["serve", "prepare"],
            &["session", "wish"],
            &["run", "fuzzing"],
        ],
        circles: Circles::Within,
    },
    Crate {
        folder: "operator",
        package: "lamina-operator",
        may_use: &[
            "lamina-crds",
            "lamina-identity",
            "lamina-model",
            "lamina-placement",
            "lamina-plugin-host",
            "lamina-profile",
            "lamina-proto",
        ],
        rows: &[
            &["text", "health"],
            &["state", "store", "lease", "identity"],
            &["prepare", "plan", "deploy", "status", "kube", "world"],
            &["hosts", "keys", "metrics", "news", "observe", "reconcile"],
            &["control", "admin", "run"],
            &["operator", "fuzzing"],
        ],
        circles: Circles::Within,
    },
    Crate {
        folder: "e2e",
        package: "lamina-e2e",
        may_use: &["lamina-crds", "lamina-model", "lamina-proto"],
        rows: &[],
        circles: Circles::Within,
    },
    Crate {
        folder: "examples/plugins/rust",
        package: "lamina-plugin-one-cut",
        may_use: &["lamina-placement", "lamina-proto"],
        rows: &[],
        circles: Circles::None,
    },
    Crate {
        folder: "xtask",
        package: "xtask",
        may_use: &[],
        rows: &[],
        circles: Circles::None,
    },
];

/// Violations in the imports of one root of `of`.
pub(super) fn judge(of: &Crate, imports: &Imports) -> Vec<String> {
    let mut wrong = Vec::new();
    if of.circles == Circles::None {
        let files = imports.arrows.keys().cloned().collect();
        wrong.extend(circles(&files).iter().map(|circle| imports.tell(circle)));
    }
    if of.rows.is_empty() {
        if of.circles == Circles::Within {
            wrong.extend(circles_of_rooms(imports));
        }
        return wrong;
    }
    for (file, module) in &imports.modules {
        if !module.is_empty() && place(of, module).is_none() {
            wrong.push(format!(
                "{file} is in no room of {}: add it to {TABLE}",
                of.folder
            ));
        }
    }
    for (from, to) in imports.arrows.keys() {
        let (Some(inner), Some(target)) = (imports.modules.get(from), imports.modules.get(to))
        else {
            continue;
        };
        let takes = imports.takes(from, to);
        match (place(of, inner), place(of, target)) {
            (Some(_), None) if target.is_empty() => {
                wrong.push(format!(
                    "{takes}, the crate's root, which is above all rooms"
                ));
            }
            (Some((row, room)), Some((below, other))) if room != other && below >= row => {
                wrong.push(format!("{takes}: the room {other} is not below {room}"));
            }
            _ => {}
        }
    }
    wrong
}

/// Cycles between the files and folders beside the root.
fn circles_of_rooms(imports: &Imports) -> Vec<String> {
    let room = |file: &String| imports.modules.get(file).and_then(|m| m.first()).cloned();
    let mut arrows: BTreeMap<(String, String), &(String, String)> = BTreeMap::new();
    for arrow in imports.arrows.keys() {
        if let (Some(from), Some(to)) = (room(&arrow.0), room(&arrow.1))
            && from != to
        {
            arrows.entry((from, to)).or_insert(arrow);
        }
    }
    let rooms = arrows.keys().cloned().collect();
    let told = |circle: &Vec<String>| {
        let behind = circle.iter().cycle().skip(1);
        let steps = circle.iter().zip(behind).filter_map(|(from, to)| {
            let (file, other) = arrows.get(&(from.clone(), to.clone()))?;
            Some(imports.takes(file, other))
        });
        let steps: Vec<String> = steps.collect();
        format!(
            "a circle of the rooms {}: {}",
            circle.join(", "),
            steps.join("; ")
        )
    };
    circles(&rooms).iter().map(told).collect()
}

/// Rooms in the table that have no file.
pub(super) fn empty_rooms(of: &Crate, roots: &[Imports]) -> Vec<String> {
    let modules = roots.iter().flat_map(|root| root.modules.values());
    let used: BTreeSet<&str> = modules
        .filter_map(|module| place(of, module))
        .map(|(_, room)| room)
        .collect();
    let rooms = of.rows.iter().flat_map(|row| row.iter());
    rooms
        .filter(|room| !used.contains(*room))
        .map(|room| format!("{}: the room {room} of {TABLE} holds no file", of.folder))
        .collect()
}

/// Violations in the crates that `package` uses.
pub(super) fn judge_uses(of: &Crate, uses: &BTreeSet<String>) -> Vec<String> {
    let allowed = |name: &str| of.may_use.contains(&name);
    let too_many = uses
        .iter()
        .filter(|name| !allowed(name))
        .map(|name| format!("{} uses {name}, which it may not; see {TABLE}", of.package));
    let missing = of
        .may_use
        .iter()
        .filter(|name| !uses.contains(**name))
        .map(|name| {
            format!(
                "{} may use {name} and does not: remove it from {TABLE}",
                of.package
            )
        });
    too_many.chain(missing).collect()
}

/// The table.
pub(super) const TABLE: &str = "xtask/src/tidy/rooms.rs";

/// Row and room of a module: the room with the longest name that it is in.
fn place(of: &Crate, module: &[String]) -> Option<(usize, &'static str)> {
    let rows = of.rows.iter().enumerate();
    let rooms = rows.flat_map(|(row, rooms)| rooms.iter().map(move |room| (row, *room)));
    let is_in = |room: &str| {
        let mut parts = room.split('/');
        let mut path = module.iter();
        parts.all(|part| path.next().is_some_and(|p| p == part))
    };
    rooms
        .filter(|(_, room)| is_in(room))
        .max_by_key(|(_, room)| room.len())
}
