//! Finds the programs that the lab starts.

use std::path::{Path, PathBuf};

/// A program was not found.
#[derive(Debug, thiserror::Error)]
#[error(
    "the program {0} is neither in KUBEBUILDER_ASSETS nor in LAMINA_TOOLS nor in PATH: run `cargo xtask setup`"
)]
pub struct MissingTool(String);

/// Folders to search, the developer's own choice first.
#[derive(Debug, Clone)]
pub(crate) struct Tools {
    folders: Vec<PathBuf>,
}

impl Tools {
    /// KUBEBUILDER_ASSETS, then LAMINA_TOOLS and LAMINA_CLUSTER_TOOLS, then PATH.
    pub(crate) fn from_environment() -> Self {
        let own = ["KUBEBUILDER_ASSETS", "LAMINA_TOOLS", "LAMINA_CLUSTER_TOOLS"]
            .into_iter()
            .filter_map(std::env::var_os)
            .map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self {
            folders: own.chain(std::env::split_paths(&path)).collect(),
        }
    }

    /// The path of a program.
    pub(crate) fn find(&self, program: &str) -> Result<PathBuf, MissingTool> {
        self.folders
            .iter()
            .map(|folder| folder.join(program))
            .find(|path: &PathBuf| Path::is_file(path))
            .ok_or_else(|| MissingTool(program.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_says_what_to_do() {
        let tools = Tools {
            folders: vec!["/nowhere".into()],
        };
        assert_eq!(
            tools.find("etcd").unwrap_err().to_string(),
            "the program etcd is neither in KUBEBUILDER_ASSETS nor in LAMINA_TOOLS nor in PATH: \
             run `cargo xtask setup`"
        );
    }

    #[test]
    fn folders_are_searched_in_order() {
        let tools = Tools {
            folders: vec!["/nowhere".into(), "/bin".into(), "/usr/bin".into()],
        };
        assert_eq!(tools.find("sh").unwrap(), Path::new("/bin/sh"));
    }
}
