use super::*;
use lamina_proto::control::DirectoryEntry;
use std::time::Duration;

fn model(namespace: &str, name: &str, node: &str) -> DirectoryModel {
    DirectoryModel {
        namespace: namespace.into(),
        name: name.into(),
        entries: vec![DirectoryEntry {
            node: node.into(),
            address: format!("{node}:8001"),
            placement_uid: "u".into(),
            serves: true,
        }],
        ..DirectoryModel::default()
    }
}

fn say(directory: &Directory, complete: bool, models: Vec<DirectoryModel>) {
    directory.apply(Message { complete, models });
}

fn names(directory: &Directory) -> Vec<String> {
    directory.now().names().cloned().collect()
}

#[test]
fn a_message_is_everything_or_what_changed() {
    let directory = Directory::default();
    assert!(!directory.now().is_heard());
    say(&directory, false, vec![model("default", "early", "cam-1")]);
    assert!(!directory.now().is_heard());
    say(
        &directory,
        true,
        vec![
            model("default", "a", "cam-1"),
            model("default", "b", "cam-1"),
        ],
    );
    assert_eq!(names(&directory), ["default/a", "default/b"]);
    assert!(directory.now().is_heard());
    let gone = DirectoryModel {
        gone: true,
        ..model("default", "a", "cam-1")
    };
    say(
        &directory,
        false,
        vec![gone, model("default", "b", "cam-2")],
    );
    assert_eq!(names(&directory), ["default/b"]);
    let table = directory.now();
    assert_eq!(table.get("default/b").unwrap().entries[0].hop.node, "cam-2");
}

#[test]
fn models_are_found_by_their_full_name_alone() {
    let directory = Directory::default();
    let models = [("default", "m"), ("lab", "m"), ("lab", "n")];
    let models = models.map(|(namespace, name)| model(namespace, name, "cam-1"));
    say(&directory, true, models.to_vec());
    let table = directory.now();
    for there in ["default/m", "lab/m", "lab/n"] {
        assert!(table.get(there).is_some(), "{there}");
    }
    for other in ["m", "n", "default/n"] {
        assert!(table.get(other).is_none(), "{other}");
    }
    assert_eq!(table.addresses().next(), Some("cam-1:8001"));
}

#[test]
fn only_a_change_wakes_those_who_wait() {
    let directory = Directory::default();
    let mut changes = directory.subscribe();
    say(&directory, true, vec![model("default", "m", "cam-1")]);
    assert!(changes.has_changed().unwrap());
    changes.mark_unchanged();
    say(&directory, true, vec![model("default", "m", "cam-1")]);
    assert!(!changes.has_changed().unwrap());
}

#[tokio::test]
async fn it_is_known_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let file = DirectoryFile::in_dir(dir.path());
    assert_eq!(file.read(), Table::default());
    let directory = Directory::default();
    let keeping = tokio::spawn(keep(directory.clone(), file.clone()));
    say(&directory, true, vec![model("lab", "m", "cam-1")]);
    let begin = std::time::Instant::now();
    while file.read() != *directory.now() {
        assert!(begin.elapsed() < Duration::from_secs(10));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    keeping.abort();
    let again = Directory::with(file.read()).now();
    assert!(again.is_heard());
    assert!(again.get("lab/m").is_some());
}

#[test]
fn a_file_that_cannot_be_understood_is_as_none() {
    let dir = tempfile::tempdir().unwrap();
    let file = DirectoryFile::in_dir(dir.path());
    let whole = br#"{"format":1,"models":{"default/m":{"entries":[{"hop":{"node":"cam-1","address":"cam-1:8001"},"serves":true}]}}}"#;
    let path = dir.path().join("directory.json");
    std::fs::write(&path, whole).unwrap();
    assert_eq!(file.read().names().count(), 1);
    let newer = String::from_utf8(whole.to_vec()).unwrap();
    let newer = newer.replace("\"format\":1", "\"format\":2");
    for text in [&whole[..40], newer.as_bytes(), b"", b"null"] {
        std::fs::write(&path, text).unwrap();
        assert_eq!(file.read(), Table::default());
    }
}
