//! Third-party servers for the tests of sources and of the store: an S3 gateway and a registry,
//! built from their Go modules. The demo needs neither.

use crate::run::logged;
use crate::setup::{self, Kit, REGISTRY, VERSITYGW, cached};
use anyhow::Result;

/// Builds what is missing.
pub(crate) fn build(kit: &Kit) -> Result<()> {
    cached(kit.servers(), |folder| {
        setup::check_go()?;
        println!("building the servers for tests of sources (about 4 minutes on 2 cores, once):");
        for (name, package, version) in [
            (
                "registry",
                "github.com/distribution/distribution/v3/cmd/registry",
                REGISTRY,
            ),
            (
                "versitygw",
                "github.com/versity/versitygw/cmd/versitygw",
                VERSITYGW,
            ),
        ] {
            let mut install = setup::go_install(package, version, folder);
            let what = format!("{name} {version}");
            logged(&what, &mut install, &kit.log(name))?;
        }
        Ok(())
    })
}
