//! Third-party programs for the tests: an S3 gateway and a registry for sources and the store, and
//! grpcurl as a client; built from their Go modules. The demo needs none of them.

use crate::run::logged;
use crate::setup::{self, GRPCURL, Kit, REGISTRY, VERSITYGW, cached};
use anyhow::Result;

/// Builds what is missing.
pub(crate) fn build(kit: &Kit) -> Result<()> {
    cached(kit.servers(), |folder| {
        setup::check_go()?;
        println!("building programs of others for the tests (about 5 minutes on 2 cores, once):");
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
            (
                "grpcurl",
                "github.com/fullstorydev/grpcurl/cmd/grpcurl",
                GRPCURL,
            ),
        ] {
            let mut install = setup::go_install(package, version, folder);
            let what = format!("{name} {version}");
            logged(&what, &mut install, &kit.log(name))?;
        }
        Ok(())
    })
}
