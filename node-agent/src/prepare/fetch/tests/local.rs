//! Files mounted into agents.

use super::*;

#[tokio::test]
async fn files_are_read_where_a_folder_is_given_and_from_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join("files");
    let claims = folder.path().join("claims");
    std::fs::create_dir_all(files.join("sub")).unwrap();
    std::fs::create_dir_all(claims.join("team")).unwrap();
    std::fs::write(folder.path().join("secret"), "secret").unwrap();
    std::fs::write(files.join("sub/m.pt"), "file").unwrap();
    std::fs::write(claims.join("team/m.pt"), "claim").unwrap();
    std::os::unix::fs::symlink("../files/sub/m.pt", claims.join("team/other")).unwrap();
    let with = fetcher_with(|args| {
        args.source_files = Some(files);
        args.source_claims = Some(claims);
    });
    assert_eq!(fetch(&with, "file:///sub/m.pt").await.unwrap(), b"file");
    assert_eq!(fetch(&with, "pvc://team/m.pt").await.unwrap(), b"claim");
    for uri in ["pvc://team/other", "pvc://none/m.pt", "file:///secret"] {
        let failure = refused(&with, uri).await;
        assert!(failure.retryable, "another node may have it: {failure}");
    }
    for uri in ["file:///../secret", "pvc://team/../team/m.pt"] {
        let failure = refused(&with, uri).await;
        assert!(!failure.retryable, "{failure}");
    }
    for (uri, value) in [
        ("file:///sub/m.pt", "agent.sources.hostPath"),
        ("pvc://team/m.pt", "agent.sources.claims"),
    ] {
        let failure = refused(&fetcher(), uri).await;
        assert!(failure.message.contains(value), "{failure}");
    }
}
