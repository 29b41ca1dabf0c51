use super::Verifier;
use crate::serve::data_plane::testing::{Folder, Host, deploy, part, route_to};
use crate::serve::engine::fake::fp32;
use crate::serve::hop::{Away, Forwarder, Hops};
use crate::testing::image;
use lamina_crds::compute_node::{Blob, Route, Verification};
use lamina_model::Probe;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

fn probe(folder: &Folder, answer: &[f32]) -> Blob {
    let probe = Probe {
        inputs: vec![fp32(&[1, 2], &[1.0, 2.0])],
        outputs: vec![fp32(&[1, 2], answer)],
    };
    folder.put(&probe.to_bytes().unwrap())
}

fn verifying(entry: &Host, answer: &[f32]) -> Route {
    let mut route = route_to(0, &[(2, entry)]);
    route.verify_revision = Some(2);
    route.revisions[0].probe = probe(&entry.folder, answer);
    route
}

async fn outcome(host: &Host, within: Duration) -> Option<Verification> {
    let deadline = tokio::time::Instant::now() + within;
    while tokio::time::Instant::now() < deadline {
        if let Some(verified) = host.routes.statuses()[0].verified.clone() {
            return Some(verified);
        }
        sleep(Duration::from_millis(10)).await;
    }
    None
}

const SOON: Duration = Duration::from_secs(5);

#[tokio::test]
async fn a_right_answer_passes_with_its_figures() {
    let folder = Folder::new();
    let (mut cam, mut edge) = (
        Host::start("cam-1", &folder),
        Host::start("edge-1", &folder),
    );
    deploy(2, &mut [(&mut cam, (2.0, 0.0)), (&mut edge, (1.0, 1.0))]).await;
    cam.routes.apply(&[verifying(&cam, &[3.0, 5.001])]).unwrap();
    let verified = outcome(&cam, SOON).await.unwrap();
    assert!(verified.passed, "{verified:?}");
    assert_eq!(verified.revision, 2);
    assert!(
        verified
            .message
            .starts_with("2 values as expected; largest difference 1.0e-3")
    );
    assert!(verified.latency_ms > 0.0);
    // A probe is not a user's request.
    assert!(cam.telemetry.drain().requests.is_empty());
}

#[tokio::test]
async fn a_wrong_answer_fails_at_once_and_is_named() {
    let mut cam = Host::start("cam-1", &Folder::new());
    deploy(2, &mut [(&mut cam, (2.0, 0.0))]).await;
    cam.routes.apply(&[verifying(&cam, &[3.0, 5.0])]).unwrap();
    let verified = outcome(&cam, SOON).await.unwrap();
    assert!(!verified.passed);
    assert!(
        verified
            .message
            .contains("output `scores`: element 0 is 2, expected 3"),
        "{verified:?}"
    );
}

#[tokio::test]
async fn a_host_that_is_not_there_yet_is_waited_for() {
    let folder = Folder::new();
    let (mut cam, mut edge) = (
        Host::start("cam-1", &folder),
        Host::start("edge-1", &folder),
    );
    cam.hold(part(&folder, 2, 0, (2.0, 0.0), Some(&edge))).await;
    edge.kill();
    cam.routes.apply(&[verifying(&cam, &[3.0, 5.0])]).unwrap();
    assert_eq!(outcome(&cam, Duration::from_millis(300)).await, None);
    let mut edge = edge.restarted();
    edge.hold(part(&folder, 2, 1, (1.0, 1.0), None)).await;
    assert!(outcome(&cam, SOON).await.unwrap().passed);
}

#[tokio::test]
async fn a_revision_that_is_no_longer_wanted_is_given_up() {
    let mut cam = Host::start("cam-1", &Folder::new());
    let wanted = verifying(&cam, &[3.0, 5.0]);
    // Nothing is loaded, so it keeps trying.
    cam.routes.apply(std::slice::from_ref(&wanted)).unwrap();
    assert_eq!(outcome(&cam, Duration::from_millis(200)).await, None);
    let unwanted = Route {
        verify_revision: None,
        ..wanted
    };
    cam.routes.apply(&[unwanted]).unwrap();
    sleep(Duration::from_millis(150)).await;
    deploy(2, &mut [(&mut cam, (2.0, 1.0))]).await;
    assert_eq!(outcome(&cam, Duration::from_millis(300)).await, None);
}

#[tokio::test]
async fn a_probe_that_cannot_be_had_fails() {
    let mut cam = Host::start("cam-1", &Folder::new());
    deploy(2, &mut [(&mut cam, (2.0, 1.0))]).await;
    let mut wanted = verifying(&cam, &[3.0, 5.0]);
    wanted.revisions[0].probe = crate::testing::blob(b"nobody has this");
    cam.routes.apply(&[wanted]).unwrap();
    let verified = outcome(&cam, SOON).await.unwrap();
    assert!(verified.message.contains("has no blob"), "{verified:?}");
}

#[tokio::test]
async fn a_dead_host_fails_the_revision_and_is_named() {
    let folder = Folder::new();
    let (mut cam, mut edge) = (
        Host::start("cam-1", &folder),
        Host::start("edge-1", &folder),
    );
    cam.hold(part(&folder, 2, 0, (2.0, 0.0), Some(&edge))).await;
    edge.kill();
    // Beside the host's own verifier, which waits longer.
    let verifier = Verifier {
        routes: cam.routes.clone(),
        forwarder: Forwarder {
            node: "cam-1".into(),
            slices: cam.slices.clone(),
            telemetry: cam.telemetry.clone(),
            hops: Hops::default(),
            away: Away::default(),
        },
        blobs: Arc::<Folder>::clone(&folder),
        patience: Duration::from_millis(200),
    };
    cam.routes.apply(&[verifying(&cam, &[3.0, 5.0])]).unwrap();
    let run = tokio::spawn(verifier.run());
    let verified = outcome(&cam, SOON).await.unwrap();
    run.abort();
    assert!(!verified.passed);
    assert!(
        verified.message.contains("no connection to edge-1"),
        "{verified:?}"
    );
}

#[tokio::test]
async fn a_revision_is_verified_by_its_own_probe_and_signature() {
    let mut cam = Host::start("cam-1", &Folder::new());
    deploy(1, &mut [(&mut cam, (5.0, 0.0))]).await;
    let mut second = part(&cam.folder, 2, 0, (2.0, 1.0), None);
    second.inputs = vec![image("pixels")];
    second.outputs = vec![image("labels")];
    cam.hold(second).await;
    let mut wanted = route_to(1, &[(1, &cam), (2, &cam)]);
    wanted.verify_revision = Some(2);
    // The active revision has other inputs and another probe; requests are refused.
    wanted.refuse = Some("keepOnEntry".into());
    wanted.revisions[0].probe = probe(&cam.folder, &[5.0, 10.0]);
    let revision = &mut wanted.revisions[1];
    revision.probe = probe(&cam.folder, &[3.0, 5.0]);
    revision.inputs = vec![image("pixels")];
    revision.outputs = vec![image("labels")];
    cam.routes.apply(&[wanted]).unwrap();
    let verified = outcome(&cam, SOON).await.unwrap();
    assert!(verified.passed, "{verified:?}");
    assert_eq!(verified.revision, 2);
}
