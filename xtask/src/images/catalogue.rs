//! The built images.

/// Version of the images and of the chart, which is the workspace's.
pub(crate) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// One image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Image {
    /// `operator`: docker/operator.Dockerfile, lamina/operator.
    pub(super) name: &'static str,
    /// Our programs, each from the package of the same name.
    pub(super) programs: &'static [&'static str],
    /// Debian packages of its root file system.
    pub(super) debian: &'static [&'static str],
    /// A folder owned by the program's user.
    pub(super) writable: &'static str,
    pub(super) has_libtorch: bool,
}

pub(super) const OPERATOR: Image = Image {
    name: "operator",
    programs: &["lamina-operator"],
    debian: &["base-files", "libc6", "libgcc-s1", "ca-certificates"],
    writable: "var/lib/lamina",
    has_libtorch: false,
};

pub(super) const NODE_AGENT: Image = Image {
    name: "node-agent",
    programs: &["lamina-node-agent", "lamina-worker"],
    debian: &[
        "base-files",
        "libc6",
        "libgcc-s1",
        "libstdc++6",
        "ca-certificates",
    ],
    writable: "var/cache/lamina",
    has_libtorch: true,
};

/// Holds a pod's namespaces in the tests' cluster.
pub(super) const PAUSE: Image = Image {
    name: "pause",
    programs: &[],
    debian: &[],
    writable: "",
    has_libtorch: false,
};

impl Image {
    /// The reference by which a container runtime finds `lamina/NAME:VERSION`.
    pub(super) fn reference(self) -> String {
        format!("docker.io/lamina/{}:{VERSION}", self.name)
    }

    pub(super) fn archive(self) -> String {
        format!("lamina-{}-{VERSION}-{}.tar", self.name, architecture())
    }
}

/// The architecture's name for images.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setup::{TORCH, root};
    use std::fs;

    fn dockerfile(image: Image) -> String {
        let path = root().join(format!("docker/{}.Dockerfile", image.name));
        fs::read_to_string(path).unwrap()
    }

    fn argument(text: &str, name: &str) -> String {
        let prefix = format!("ARG {name}=");
        let line = text.lines().find_map(|l| l.strip_prefix(&prefix));
        line.unwrap_or_else(|| panic!("no {prefix}")).to_owned()
    }

    #[test]
    fn dockerfiles_are_of_the_same_versions_as_the_lab() {
        let toolchain = fs::read_to_string(root().join("rust-toolchain.toml")).unwrap();
        for image in [OPERATOR, NODE_AGENT] {
            let text = dockerfile(image);
            let rust = argument(&text, "RUST");
            let version = rust
                .trim_start_matches("rust:")
                .trim_end_matches("-bookworm");
            assert!(
                toolchain.contains(&format!("channel = \"{version}\"")),
                "{rust}"
            );
            assert_eq!(argument(&text, "VERSION"), VERSION);
        }
        assert_eq!(argument(&dockerfile(NODE_AGENT), "TORCH"), TORCH);
    }

    #[test]
    fn dockerfiles_lay_out_the_same_packages() {
        for image in [OPERATOR, NODE_AGENT] {
            let text = dockerfile(image);
            let packages = format!("/rootfs {} \\", image.debian.join(" "));
            assert!(text.contains(&packages), "{packages}");
            assert!(text.contains(&format!("/rootfs/{}\n", image.writable)));
        }
    }

    #[test]
    fn images_run_as_nobody_in_particular() {
        for image in [OPERATOR, NODE_AGENT] {
            assert!(dockerfile(image).contains("\nUSER 65532:65532\n"));
        }
    }

    /// In the workspace, one package's features hide that another lacks them; a Dockerfile builds
    /// its programs alone.
    #[test]
    fn programs_that_fetch_have_tls_without_the_workspace() {
        for image in [OPERATOR, NODE_AGENT] {
            let mut tree = std::process::Command::new(env!("CARGO"));
            tree.current_dir(root());
            tree.args(["tree", "--offline", "--edges", "features,normal"]);
            tree.args(["--prefix", "none"]);
            for program in image.programs {
                tree.args(["--package", program]);
            }
            let out = tree.output().unwrap();
            let tree = String::from_utf8_lossy(&out.stdout);
            assert!(tree.contains("\nreqwest v"), "{out:?}");
            assert!(
                tree.contains("reqwest feature \"__rustls\""),
                "{}",
                image.name
            );
        }
    }
}
