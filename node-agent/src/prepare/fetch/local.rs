//! Files of this node: from a dedicated folder, or from volumes mounted for this purpose.

use super::error::FetchError;
use super::origin::{Opened, Origin, Resume};
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use tokio_util::io::ReaderStream;

/// A file below a folder.
#[derive(Debug)]
pub(super) struct LocalFile {
    /// Nothing outside of it is read.
    pub root: PathBuf,
    /// The file, from there.
    pub path: PathBuf,
}

#[async_trait]
impl Origin for LocalFile {
    async fn open(&self, _: Option<&Resume>) -> Result<Opened, FetchError> {
        let (root, path) = (self.root.clone(), self.path.clone());
        let opening = tokio::task::spawn_blocking(move || open_below(&root, &path)).await;
        let (file, bytes) = opening
            .map_err(io::Error::other)
            .and_then(|opened| opened)
            .map_err(|e| FetchError::Local(why(&e)))?;
        let body = ReaderStream::new(tokio::fs::File::from_std(file));
        Ok(Opened {
            start: 0,
            total: Some(bytes),
            validator: None,
            body: body.map_err(|e| e.to_string()).boxed(),
        })
    }
}

/// The file and its size. The kernel ensures that no link and no `..` leads out.
fn open_below(root: &Path, path: &Path) -> io::Result<(File, u64)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty())?;
    let file = rustix::fs::openat2(
        root,
        path,
        // A pipe must not block a thread.
        flags | OFlags::NONBLOCK,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS,
    )?;
    let file = File::from(file);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no file"));
    }
    Ok((file, metadata.len()))
}

fn why(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::XDEV | Errno::LOOP) => {
            "its path leads out of the folder that sources may be in".to_owned()
        }
        Some(Errno::NOENT) => "there is no such file on this node".to_owned(),
        _ => format!("it cannot be opened: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn opened(root: &Path, path: &str) -> Result<u64, String> {
        let opened = open_below(root, Path::new(path));
        opened.map(|(_, bytes)| bytes).map_err(|e| why(&e))
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(folder.path().join("secret"), "s").unwrap();
        std::fs::write(root.join("sub/m.pt"), "four").unwrap();
        symlink("sub/m.pt", root.join("inside")).unwrap();
        symlink("../secret", root.join("out")).unwrap();
        symlink(folder.path(), root.join("up")).unwrap();
        assert_eq!(opened(&root, "sub/m.pt"), Ok(4));
        assert_eq!(opened(&root, "inside"), Ok(4));
        for path in ["out", "up/secret", "../secret", "sub/../../secret"] {
            let said = opened(&root, path).unwrap_err();
            assert!(said.contains("leads out"), "{path}: {said}");
        }
        let absolute = folder.path().join("secret");
        assert!(opened(&root, absolute.to_str().unwrap()).is_err());
    }

    #[test]
    fn only_files_are_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("sub")).unwrap();
        let said = opened(folder.path(), "sub").unwrap_err();
        assert!(said.contains("no file"), "{said}");
        let said = opened(folder.path(), "none").unwrap_err();
        assert!(said.contains("no such file"), "{said}");
    }
}
