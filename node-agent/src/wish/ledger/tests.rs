use super::*;
use crate::testing::{route, slice};
use std::slice::from_ref;

fn wish(generation: i64, slices: &[Slice], routes: &[Route]) -> Wish {
    Wish {
        uid: "node-uid".into(),
        generation,
        operator: "10.0.0.3:9000".into(),
        slices: slices.to_vec(),
        routes: routes.to_vec(),
        standby: Vec::new(),
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
    let first = admitted(&Ledger::default(), &wish(1, from_ref(&old), &[]));
    let both = admitted(&first, &wish(2, &[old.clone(), new.clone()], &[]));
    let last = admitted(&both, &wish(3, from_ref(&new), &[]));
    assert_eq!(last.slices, from_ref(&new));
    // Once it is gone it does not come back.
    let (kept, refusals) = last.admit(&wish(4, &[old, new.clone()], &[]));
    assert_eq!(kept.slices, [new]);
    assert!(refusals[0].to_string().contains("is older than 2"));
}

#[test]
fn blocks_ahead_are_as_they_were_told_last_and_outlive_a_restart() {
    let standby = |blocks| Standby {
        placement_uid: "u".into(),
        blocks,
    };
    let told = |generation, standby: &[Standby]| Wish {
        standby: standby.to_vec(),
        ..wish(generation, &[], &[])
    };
    let one = standby(vec![crate::testing::blob(&[7])]);
    let ledger = admitted(&Ledger::default(), &told(1, from_ref(&one)));
    assert_eq!(ledger.standby, from_ref(&one));
    let folder = tempfile::tempdir().unwrap();
    let file = LedgerFile::in_dir(folder.path());
    file.write(&ledger).unwrap();
    assert_eq!(file.read().unwrap(), ledger);
    assert_eq!(admitted(&ledger, &told(2, &[])).standby, []);
}

#[test]
fn a_revision_keeps_its_content() {
    let held = slice("u", 1, 0);
    let ledger = admitted(&Ledger::default(), &wish(1, from_ref(&held), &[]));
    let mut changed = held.clone();
    changed.blocks[0].digest = "b".repeat(64);
    let (kept, refusals) = ledger.admit(&wish(2, &[changed], &[]));
    assert_eq!(kept.slices, from_ref(&held));
    assert!(
        refusals[0]
            .to_string()
            .contains("a change needs a new revision")
    );
    // A new address of the next host does not change the content.
    let mut moved = held;
    if let Some(next) = &mut moved.next {
        next.address = "10.9.9.9:8001".into();
    }
    let ledger = admitted(&ledger, &wish(3, from_ref(&moved), &[]));
    assert_eq!(ledger.slices, [moved]);
}

#[test]
fn how_values_are_sent_belongs_to_a_revision() {
    let encoding = lamina_crds::Encoding {
        dtype: lamina_crds::WireType::Int8,
        values: vec!["x1".into()],
    };
    let held = (slice("u", 1, 0), route("u", "m", 1));
    let first = wish(1, from_ref(&held.0), from_ref(&held.1));
    let ledger = admitted(&Ledger::default(), &first);
    let mut other = held.clone();
    other.0.encoding = Some(encoding.clone());
    let mut rerouted = held.1.clone();
    rerouted.revisions[0].encoding = Some(encoding);
    let mut looser = held.1.clone();
    looser.revisions[0].error = Some(0.5);
    for (slice, route) in [
        (&other.0, &held.1),
        (&held.0, &rerouted),
        (&held.0, &looser),
    ] {
        let (kept, refusals) = ledger.admit(&wish(2, from_ref(slice), from_ref(route)));
        assert_eq!(refusals.len(), 1);
        assert!(
            refusals[0]
                .to_string()
                .contains("a change needs a new revision")
        );
        assert_eq!((&kept.slices[0], &kept.routes[0]), (&held.0, &held.1));
    }
}

#[test]
fn another_placement_starts_anew() {
    let ledger = admitted(&Ledger::default(), &wish(1, &[slice("u", 7, 0)], &[]));
    let again = slice("recreated", 1, 0);
    let ledger = admitted(&ledger, &wish(2, from_ref(&again), &[]));
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
    fs::write(dir.path().join(FILE_NAME), b"{\"format\":2,").unwrap();
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

type Change<T> = (&'static str, fn(&mut T), bool);

#[test]
fn only_the_next_hosts_address_may_change_under_a_revision() {
    let held = slice("u", 1, 0);
    let ledger = admitted(&Ledger::default(), &wish(1, from_ref(&held), &[]));
    let changes: [Change<Slice>; 7] = [
        ("address", |s| s.next = Some(moved("edge-1")), true),
        ("next", |s| s.next = Some(moved("edge-2")), false),
        ("no next", |s| s.next = None, false),
        ("model", |s| s.model = "default/other".into(), false),
        ("blocks", |s| s.blocks.clear(), false),
        ("inputs", |s| s.inputs[0].shape = vec![-1, 3], false),
        ("outputs", |s| s.outputs.clear(), false),
    ];
    for (what, change, is_allowed) in changes {
        let mut offered = held.clone();
        change(&mut offered);
        let (next, refusals) = ledger.admit(&wish(2, from_ref(&offered), &[]));
        let expected = if is_allowed { &offered } else { &held };
        assert_eq!(next.slices, from_ref(expected), "{what}");
        assert_eq!(refusals.is_empty(), is_allowed, "{what}: {refusals:?}");
    }
}

#[test]
fn who_may_call_is_told_once_under_a_revision() {
    let called_by = |callers: Option<Vec<String>>| Slice {
        callers,
        ..slice("u", 1, 0)
    };
    let (untold, told) = (called_by(None), called_by(Some(vec!["cam-1".into()])));
    let ledger = admitted(&Ledger::default(), &wish(1, from_ref(&untold), &[]));
    let ledger = admitted(&ledger, &wish(2, from_ref(&told), &[]));
    assert_eq!(ledger.slices, from_ref(&told));
    for other in [called_by(None), called_by(Some(vec!["cam-2".into()]))] {
        let (kept, refusals) = ledger.admit(&wish(3, &[other], &[]));
        assert_eq!((kept.slices, refusals.len()), (vec![told.clone()], 1));
    }
}

#[test]
fn only_the_first_hosts_address_may_change_under_a_routed_revision() {
    let held = route("u", "m", 1);
    let ledger = admitted(&Ledger::default(), &wish(1, &[], from_ref(&held)));
    let changes: [Change<Route>; 9] = [
        ("address", |r| r.revisions[0].first = moved("cam-1"), true),
        ("refuse", |r| r.refuse = Some("keepOnEntry".into()), true),
        ("verify", |r| r.verify_revision = Some(2), true),
        ("first", |r| r.revisions[0].first = moved("cam-2"), false),
        ("path", |r| r.revisions[0].path = "cam-1[0-9]".into(), false),
        ("inputs", |r| r.revisions[0].inputs.clear(), false),
        ("outputs", |r| r.revisions[0].outputs.clear(), false),
        ("probe", |r| r.revisions[0].probe.bytes += 1, false),
        ("manifest", |r| r.revisions[0].manifest.bytes += 1, false),
    ];
    for (what, change, is_allowed) in changes {
        let mut offered = held.clone();
        change(&mut offered);
        let (next, refusals) = ledger.admit(&wish(2, &[], from_ref(&offered)));
        let expected = if is_allowed { &offered } else { &held };
        assert_eq!(next.routes, from_ref(expected), "{what}");
        assert_eq!(refusals.is_empty(), is_allowed, "{what}: {refusals:?}");
    }
    let (_, refusals) = ledger.admit(&wish(2, &[], &[route("u", "other", 1)]));
    let refusal = refusals[0].to_string();
    assert!(
        refusal.contains("routes default/m, not default/other"),
        "{refusal}"
    );
}

#[test]
fn a_refusal_of_requests_is_taken_even_from_a_route_that_leads_back() {
    let ledger = admitted(&Ledger::default(), &wish(1, &[], &[route("u", "m", 3)]));
    let mut back = route("u", "m", 2);
    back.refuse = Some("keepOnEntry".into());
    let (next, _) = ledger.admit(&wish(2, &[], &[back]));
    let kept = &next.routes[0];
    assert_eq!(
        (kept.active_revision, kept.refuse.as_deref()),
        (3, Some("keepOnEntry"))
    );
}

fn moved(node: &str) -> Hop {
    Hop {
        node: node.into(),
        address: "10.9.9.9:8001".into(),
    }
}

/// As written by the version before.
const FORMAT_1: &str = r#"{
  "format": 1,
  "uid": "node-uid",
  "generation": 7,
  "operator": "10.0.0.3:9000",
  "slices": [{
    "placementUid": "u", "model": "default/m", "revision": 4, "segment": 0,
    "blocks": [{"digest": "aa", "bytes": 3}],
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 2]}],
    "outputs": [{"name": "scores", "datatype": "FP32", "shape": [-1, 2]}],
    "next": {"node": "edge-1", "address": "10.0.0.8:8001"}
  }],
  "routes": [{
    "placementUid": "u", "namespace": "default", "name": "m",
    "entry": {"node": "cam-1", "address": "10.0.0.7:8001"},
    "activeRevision": 4,
    "revisions": [{"revision": 4, "first": {"node": "cam-1", "address": "10.0.0.7:8001"}, "path": "cam-1[0-4]"}],
    "inputs": [], "outputs": [],
    "probe": {"digest": "bb", "bytes": 3}
  }],
  "newest": {"u": 4, "gone": 9}
}"#;

#[test]
fn of_a_ledger_of_the_version_before_the_slices_stay() {
    let dir = tempfile::tempdir().unwrap();
    let file = LedgerFile::in_dir(dir.path());
    fs::write(dir.path().join(FILE_NAME), FORMAT_1).unwrap();
    let ledger = file.read().unwrap();
    let slice = &ledger.slices[0];
    assert_eq!(
        (slice.revision, slice.next.as_ref().unwrap().node.as_str()),
        (4, "edge-1")
    );
    assert_eq!((ledger.routes.len(), ledger.newest["gone"]), (0, 9));
    assert_eq!(ledger.operator, "10.0.0.3:9000");
    // The same generation is applied again, for the missing routes.
    assert!(ledger.generation < 7);
    let again = admitted(&ledger, &wish(7, &ledger.slices, &[route("u", "m", 4)]));
    assert_eq!((again.slices.len(), again.routes.len()), (1, 1));
    file.write(&again).unwrap();
    assert_eq!(file.read().unwrap(), again);
}

#[tokio::test]
async fn on_a_full_disk_the_ledger_takes_the_space_that_was_kept_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = LedgerFile::in_dir(folder.path());
    let before = Ledger::default();
    file.store(&before).await.unwrap();
    assert!(folder.path().join("ledger.reserve").exists());
    let next = Ledger {
        generation: 7,
        ..before
    };
    // A disk that is full until something is removed.
    let full = || std::os::unix::fs::symlink("/dev/full", folder.path().join("ledger.new"));
    full().unwrap();
    file.store(&next).await.unwrap();
    assert_eq!(file.read().unwrap(), next);
    // And half of what could not be written does not stay.
    full().unwrap();
    let error = files::replace(&folder.path().join("ledger.json"), b"other").unwrap_err();
    assert!(files::is_full(&error));
    assert_eq!(file.read().unwrap(), next);
    assert!(!folder.path().join("ledger.new").exists());
}

#[tokio::test]
async fn a_disk_that_is_slow_holds_up_nothing_else() {
    use rustix::fs::{CWD, Mode, mkfifoat};
    let folder = tempfile::tempdir().unwrap();
    let file = LedgerFile::in_dir(folder.path());
    // Opening a pipe to write waits until somebody reads it.
    let pipe = folder.path().join("ledger.new");
    mkfifoat(CWD, pipe.as_path(), Mode::RWXU).unwrap();
    let (went_on, told) = std::sync::mpsc::channel();
    let disk = std::thread::spawn(move || {
        let told = told.recv_timeout(std::time::Duration::from_secs(20));
        fs::read(pipe).unwrap();
        told.is_ok()
    });
    let ledger = Ledger::default();
    // Both on one thread: the second goes on while the first waits.
    let beside = async move { went_on.send(()).unwrap() };
    let (stored, ()) = tokio::join!(file.store(&ledger), beside);
    assert!(disk.join().unwrap(), "everything waited for the disk");
    // A pipe cannot be synced.
    assert!(stored.is_err());
}
