use super::*;
use crate::testing::{image, revision, route};

fn routes() -> Routes {
    Routes::new(Arc::default())
}

fn with_revisions(active: i64, all: &[i64]) -> Route {
    Route {
        revisions: all.iter().map(|&r| revision(r, "cam-1")).collect(),
        ..route("u", "m", active)
    }
}

/// Revision 2 has other inputs than revision 1.
fn renamed(active: i64, all: &[i64]) -> Route {
    let mut route = with_revisions(active, all);
    for revision in route.revisions.iter_mut().filter(|r| r.revision > 1) {
        revision.inputs = vec![image("pixels"), image("mask")];
    }
    route
}

fn names(ticket: &Ticket) -> Vec<&str> {
    let inputs = ticket.signature.inputs.iter();
    inputs.map(|i| i.name.as_str()).collect()
}

#[test]
fn a_flip_counts_what_is_on_its_way_and_the_old_revision_drains() {
    let routes = routes();
    routes.apply(&[with_revisions(1, &[1, 2])]).unwrap();
    let old = [routes.begin("u").unwrap(), routes.begin("u").unwrap()];
    routes.apply(&[with_revisions(2, &[1, 2])]).unwrap();
    let new = routes.begin("u").unwrap();
    assert_eq!((old[0].revision(), new.revision()), (1, 2));
    let status = &routes.statuses()[0];
    assert_eq!(
        (
            status.active_revision,
            status.oldest_in_flight,
            status.in_flight_at_flip
        ),
        (2, 1, 2)
    );
    drop(old);
    assert_eq!(routes.statuses()[0].oldest_in_flight, 2);
    assert_eq!(routes.statuses()[0].in_flight_at_flip, 2);
}

#[test]
fn requests_on_a_dropped_revision_are_told() {
    let routes = routes();
    routes.apply(&[with_revisions(1, &[1])]).unwrap();
    let ticket = routes.begin("u").unwrap();
    routes.apply(&[with_revisions(2, &[1, 2])]).unwrap();
    assert!(!ticket.abandoned.is_cancelled() && ticket.superseded.is_cancelled());
    routes.apply(&[with_revisions(2, &[2])]).unwrap();
    assert!(ticket.abandoned.is_cancelled());
    let fresh = routes.begin("u").unwrap();
    assert!(!fresh.superseded.is_cancelled());
    routes.apply(&[]).unwrap();
    assert!(fresh.abandoned.is_cancelled() && fresh.superseded.is_cancelled());
    assert_eq!(routes.begin("u").unwrap_err(), NoTicket::Gone);
}

#[test]
fn nothing_starts_where_nothing_serves() {
    let routes = routes();
    routes.apply(&[with_revisions(0, &[1])]).unwrap();
    assert_eq!(routes.begin("u").unwrap_err(), NoTicket::NotServing);
    assert_eq!(routes.find("default/m")[0].active, None);
}

#[test]
fn a_request_takes_the_signature_of_its_revision() {
    let routes = routes();
    routes.apply(&[renamed(1, &[1, 2])]).unwrap();
    let old = routes.begin("u").unwrap();
    assert_eq!((names(&old), &old.earlier), (vec!["image"], &None));
    routes.apply(&[renamed(2, &[1, 2])]).unwrap();
    assert_eq!(names(&old), ["image"]);
    let new = routes.begin("u").unwrap();
    assert_eq!(names(&new), ["pixels", "mask"]);
    assert_eq!(new.earlier.as_ref(), Some(&old.signature));
    // It is remembered while nothing is active, and over revisions with the same inputs.
    routes.apply(&[renamed(0, &[3])]).unwrap();
    routes.apply(&[renamed(3, &[3])]).unwrap();
    let next = routes.begin("u").unwrap();
    assert_eq!(next.earlier.as_ref(), Some(&old.signature));
}

#[test]
fn a_revision_that_nothing_fits_is_left_out_and_the_others_followed() {
    let routes = routes();
    let mut wanted = with_revisions(1, &[1, 2]);
    wanted.revisions[1].inputs[0].datatype = "FP8".into();
    assert!(routes.apply(&[wanted.clone()]).is_err());
    assert_eq!(routes.begin("u").unwrap().revision(), 1);
    wanted.active_revision = 2;
    assert!(routes.apply(&[wanted]).is_err());
    assert_eq!(routes.begin("u").unwrap_err(), NoTicket::NotServing);
}

#[test]
fn a_refusal_ends_what_is_inside_and_lets_nothing_start() {
    let routes = routes();
    routes.apply(&[with_revisions(1, &[1])]).unwrap();
    let inside = routes.begin("u").unwrap();
    let refusing = Route {
        refuse: Some("keepOnEntry".into()),
        ..with_revisions(1, &[1])
    };
    routes.apply(std::slice::from_ref(&refusing)).unwrap();
    assert!(inside.abandoned.is_cancelled() && inside.superseded.is_cancelled());
    let refused = NoTicket::Refused("keepOnEntry".into());
    assert_eq!(routes.begin("u").unwrap_err(), refused);
    // If it is lifted before the last one has left, new ones get no error.
    routes.apply(&[with_revisions(1, &[1])]).unwrap();
    let fresh = routes.begin("u").unwrap();
    assert!(!fresh.abandoned.is_cancelled() && !fresh.superseded.is_cancelled());
}

#[test]
fn models_are_found_by_their_full_name_alone() {
    let routes = routes();
    let other = Route {
        namespace: "lab".into(),
        ..route("v", "m", 1)
    };
    routes.apply(&[route("u", "m", 1), other]).unwrap();
    let found = |name: &str| {
        let models = routes.find(name);
        let uids = models.iter().map(|m| m.placement_uid.clone());
        uids.collect::<Vec<_>>()
    };
    assert_eq!(found("lab/m"), ["v"]);
    assert_eq!(found("default/m"), ["u"]);
    for other in ["m", "lab/n", "other/m"] {
        assert_eq!(found(other), Vec::<String>::new());
    }
}

#[test]
fn a_revision_is_verified_once() {
    let mut wanted = with_revisions(1, &[1, 2]);
    wanted.verify_revision = Some(2);
    let routes = routes();
    routes.apply(&[wanted]).unwrap();
    assert_eq!(routes.to_verify(), [("u".to_owned(), 2)]);
    routes.verified(
        "u",
        Verification {
            revision: 2,
            passed: true,
            message: String::new(),
            latency_ms: 1.0,
            time: k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                k8s_openapi::jiff::Timestamp::UNIX_EPOCH,
            ),
        },
    );
    assert_eq!(routes.to_verify(), []);
}
