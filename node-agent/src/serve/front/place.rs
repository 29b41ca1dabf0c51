//! Where a request goes, based on this host's routes and on the directory. Pure.

use super::error::FrontError;
use crate::serve::directory::{Entry, Listed, Table};
use crate::serve::routes::Model;
use lamina_crds::Hop;
use std::sync::Arc;

/// Where a request goes.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// This host is the model's entry, and a revision serves.
    Here(Arc<Model>),
    /// Entries that serve it, in the order in which to try them.
    There {
        full_name: String,
        entries: Vec<Hop>,
    },
    /// It is being deployed: the request waits for a change.
    Wait(Waited),
}

/// What a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Waited {
    /// This model, which enters at this host if there is a UID.
    Model {
        full_name: String,
        placement_uid: Option<String>,
    },
    /// The operator's first message: until then it is unknown whether the model exists.
    Operator { name: String },
}

/// The input of the decision.
pub(super) struct View<'a> {
    /// This host.
    pub(super) node: &'a str,
    /// Models of that name that enter at this host.
    pub(super) routed: &'a [Arc<Model>],
    pub(super) directory: &'a Table,
    /// Smallest round trip to a host in seconds, if measured.
    pub(super) round_trip: &'a dyn Fn(&str) -> Option<f64>,
    /// Whether an address was unreachable recently.
    pub(super) is_unreachable: &'a dyn Fn(&str) -> bool,
}

/// Where a request for the model `namespace/name` goes.
///
/// # Errors
/// There is no such model, or none to wait for.
pub(super) fn place(full_name: &str, view: &View<'_>) -> Result<Place, FrontError> {
    // A recreated Placement coexists with the old one for a moment.
    let best = view
        .routed
        .iter()
        .min_by_key(|m| (m.active.is_none(), m.refuse.is_some()));
    match best {
        Some(model) => at_entry(model, view),
        None => match view.directory.get(full_name) {
            Some(listed) => elsewhere(full_name, listed, view),
            None => unknown(full_name, view),
        },
    }
}

fn unknown(full_name: &str, view: &View<'_>) -> Result<Place, FrontError> {
    let name = full_name.to_owned();
    if view.directory.is_heard() {
        return Err(FrontError::Unknown(name));
    }
    Ok(Place::Wait(Waited::Operator { name }))
}

/// The entry itself forwards nothing: the request's data may have to stay on this host, and only
/// its own plan knows.
fn at_entry(model: &Arc<Model>, view: &View<'_>) -> Result<Place, FrontError> {
    if let Some(reason) = &model.refuse {
        return Err(FrontError::Refused {
            model: model.full_name.clone(),
            reason: reason.clone(),
        });
    }
    if model.active.is_some() {
        return Ok(Place::Here(Arc::clone(model)));
    }
    let full_name = model.full_name.clone();
    match view.directory.get(&full_name) {
        Some(listed) if !listed.reason.is_empty() && !listed.coming => Err(FrontError::Failed {
            model: full_name,
            reason: listed.reason.clone(),
        }),
        _ => Ok(Place::Wait(Waited::Model {
            full_name,
            placement_uid: Some(model.placement_uid.clone()),
        })),
    }
}

fn elsewhere(full_name: &str, listed: &Listed, view: &View<'_>) -> Result<Place, FrontError> {
    let full_name = full_name.to_owned();
    let entries = in_order(&listed.entries, view);
    if !entries.is_empty() {
        return Ok(Place::There { full_name, entries });
    }
    let is_here = |e: &Entry| e.hop.node == view.node;
    if listed.coming || listed.entries.iter().any(|e| e.serves && is_here(e)) {
        // The route arrives separately from the directory.
        return Ok(Place::Wait(Waited::Model {
            full_name,
            placement_uid: None,
        }));
    }
    if listed.reason.is_empty() {
        return Err(FrontError::NotServing(full_name));
    }
    Err(FrontError::Failed {
        model: full_name,
        reason: listed.reason.clone(),
    })
}

/// Other hosts that serve: the nearest first, then unmeasured ones in the operator's order, and
/// last those that were unreachable recently.
fn in_order(entries: &[Entry], view: &View<'_>) -> Vec<Hop> {
    let others = entries
        .iter()
        .filter(|e| e.serves && e.hop.node != view.node);
    let mut ranked: Vec<(bool, f64, &Hop)> = others
        .map(|Entry { hop, .. }| {
            let seconds = (view.round_trip)(&hop.node).unwrap_or(f64::INFINITY);
            ((view.is_unreachable)(&hop.address), seconds, hop)
        })
        .collect();
    ranked.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
    ranked.into_iter().map(|(_, _, hop)| hop.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::directory::Directory;
    use crate::serve::routes::Routes;
    use lamina_crds::compute_node::Route;
    use lamina_proto::control::{Directory as Message, DirectoryEntry, DirectoryModel};

    fn listed(namespace: &str, entries: &[(&str, bool)]) -> DirectoryModel {
        let entry = |&(node, serves): &(&str, bool)| DirectoryEntry {
            node: node.into(),
            address: format!("{node}:8001"),
            placement_uid: "u".into(),
            serves,
        };
        DirectoryModel {
            namespace: namespace.into(),
            name: "m".into(),
            entries: entries.iter().map(entry).collect(),
            ..DirectoryModel::default()
        }
    }

    fn heard(models: &[DirectoryModel]) -> Directory {
        let directory = Directory::default();
        directory.apply(Message {
            complete: true,
            models: models.to_vec(),
        });
        directory
    }

    /// Where a request for `default/m` on `cam-1` goes, as text.
    fn placed_with(
        directory: &Directory,
        routes: &[Route],
        round_trip: &dyn Fn(&str) -> Option<f64>,
    ) -> String {
        let held = Routes::new(Arc::default());
        held.apply(routes).unwrap();
        let view = View {
            node: "cam-1",
            routed: &held.find("default/m"),
            directory: &directory.now(),
            round_trip,
            is_unreachable: &|address| address == "gone:8001",
        };
        match place("default/m", &view) {
            Ok(Place::Here(model)) => format!("here: {}", model.placement_uid),
            Ok(Place::There { entries, .. }) => {
                let nodes: Vec<String> = entries.into_iter().map(|e| e.node).collect();
                format!("there: {}", nodes.join(" "))
            }
            Ok(Place::Wait(Waited::Operator { .. })) => "wait for the operator".into(),
            Ok(Place::Wait(Waited::Model { placement_uid, .. })) => {
                format!("wait: {}", placement_uid.unwrap_or_default())
            }
            Err(error) => format!("{:?}: {error}", error.code()),
        }
    }

    fn placed(directory: &[DirectoryModel], routes: &[Route]) -> String {
        placed_with(&heard(directory), routes, &|_| None)
    }

    fn route(active: i64) -> Route {
        crate::testing::route("u", "m", active)
    }

    #[test]
    fn a_route_of_this_host_comes_first() {
        let elsewhere = [listed("default", &[("edge-1", true)])];
        assert_eq!(placed(&elsewhere, &[route(1)]), "here: u");
        // It forwards nothing while it does not serve itself.
        assert_eq!(placed(&elsewhere, &[route(0)]), "wait: u");
        let again = crate::testing::route("v", "m", 3);
        assert_eq!(placed(&[], &[route(0), again]), "here: v");
    }

    #[test]
    fn a_refusal_stands_above_everything() {
        let refusing = Route {
            refuse: Some("raw input would leave cam-1".into()),
            ..route(1)
        };
        assert_eq!(
            placed(&[listed("default", &[("edge-1", true)])], &[refusing]),
            "FailedPrecondition: model `default/m` refuses requests: raw input would leave cam-1"
        );
    }

    #[test]
    fn the_nearest_entry_that_serves_is_tried_first() {
        let all = ["gone", "idle", "far", "new", "near", "newer", "cam-1"];
        let entries = all.map(|node| (node, node != "idle"));
        let round_trip = |node: &str| match node {
            "gone" => Some(0.0001),
            "near" => Some(0.001),
            "far" => Some(0.1),
            _ => None,
        };
        let directory = heard(&[listed("default", &entries)]);
        assert_eq!(
            placed_with(&directory, &[], &round_trip),
            "there: near far new newer gone"
        );
    }

    #[test]
    fn what_is_on_its_way_is_waited_for_and_what_failed_is_not() {
        let mut model = listed("default", &[("edge-1", false)]);
        assert!(
            placed(&[model.clone()], &[]).starts_with("Unavailable: model `default/m` is known")
        );
        model.coming = true;
        model.reason = "Preparing".into();
        assert_eq!(placed(&[model.clone()], &[]), "wait: ");
        model.coming = false;
        model.reason = "Failed: InvalidModel: no TorchScript".into();
        let failed =
            "Unavailable: model `default/m` does not serve: Failed: InvalidModel: no TorchScript";
        assert_eq!(placed(&[model.clone()], &[]), failed);
        assert_eq!(placed(&[model], &[route(0)]), failed);
        // Its route has not arrived, or was just removed.
        assert_eq!(
            placed(&[listed("default", &[("cam-1", true)])], &[]),
            "wait: "
        );
    }

    #[test]
    fn an_unknown_model_is_not_found_once_the_operator_has_spoken() {
        let silent = placed_with(&Directory::default(), &[], &|_| None);
        assert_eq!(silent, "wait for the operator");
        // Other namespaces' models stay hidden.
        let mut other = listed("lab", &[("edge-1", true)]);
        other.name = "secret".into();
        let routed = crate::testing::route("v", "hidden", 1);
        assert_eq!(
            placed(&[other], &[routed]),
            "NotFound: unknown model `default/m`; call models of other namespaces as \
             NAMESPACE/NAME, as `kubectl get dnnmodels --all-namespaces` has them"
        );
    }

    #[test]
    fn a_model_of_another_namespace_never_stands_in() {
        let other = listed("lab", &[("edge-1", true)]);
        assert_eq!(placed(std::slice::from_ref(&other), &[route(1)]), "here: u");
        assert!(placed(std::slice::from_ref(&other), &[]).starts_with("NotFound"));
        let routed = Route {
            namespace: "lab".into(),
            ..crate::testing::route("v", "m", 1)
        };
        assert!(placed(&[other], &[routed]).starts_with("NotFound"));
    }
}
