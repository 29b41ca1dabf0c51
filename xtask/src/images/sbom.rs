//! A software bill of materials for each image, in CycloneDX: the crates that the
//! program is built from, the Debian packages below it, and PyTorch.

use super::catalogue::{Image, VERSION};
use crate::run::output;
use crate::setup::{Kit, TORCH};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Writes the SBOM of `image` to `file`.
pub(super) fn write(kit: &Kit, image: Image, rootfs: &Path, file: &Path) -> Result<()> {
    let mut components = BTreeSet::new();
    for program in image.programs {
        let mut cargo = kit.cargo();
        cargo.args(["tree", "--locked", "--package", program]);
        cargo.args(["--edges", "normal,no-proc-macro", "--prefix", "none"]);
        cargo.args(["--format", "{p}|{l}"]);
        let tree = output(&mut cargo).with_context(|| format!("cargo tree of {program} failed"))?;
        components.extend(tree.lines().filter_map(of_crate));
    }
    components.extend(debian(rootfs)?);
    if image.has_libtorch {
        components.insert(Component {
            name: "torch".to_owned(),
            version: TORCH.to_owned(),
            purl: format!("pkg:pypi/torch@{TORCH}"),
            licence: Some("BSD-3-Clause".to_owned()),
        });
    }
    let text = format!("{:#}\n", document(image, &components));
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Component {
    name: String,
    version: String,
    purl: String,
    licence: Option<String>,
}

/// A line `serde v1.0.229|MIT OR Apache-2.0` of cargo's tree.
fn of_crate(line: &str) -> Option<Component> {
    let (package, licence) = line.split_once('|')?;
    let mut words = package.split_whitespace();
    let name = words.next()?.to_owned();
    let version = words.next()?.strip_prefix('v')?.to_owned();
    // The tree marks repeated crates with a star.
    let licence = licence.trim_end_matches("(*)").trim();
    Some(Component {
        purl: format!("pkg:cargo/{name}@{version}"),
        licence: (!licence.is_empty()).then(|| licence.to_owned()),
        name,
        version,
    })
}

/// The packages whose control files are in the root file system.
fn debian(rootfs: &Path) -> Result<Vec<Component>> {
    let folder = rootfs.join("var/lib/dpkg/status.d");
    let Ok(entries) = fs::read_dir(&folder) else {
        return Ok(Vec::new());
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let control =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        all.extend(of_debian(&control));
    }
    Ok(all)
}

fn of_debian(control: &str) -> Option<Component> {
    let field = |name: &str| {
        let prefix = format!("{name}: ");
        control.lines().find_map(|line| line.strip_prefix(&prefix))
    };
    let (name, version) = (field("Package")?, field("Version")?);
    let architecture = field("Architecture")?;
    Some(Component {
        name: name.to_owned(),
        version: version.to_owned(),
        purl: format!(
            "pkg:deb/debian/{}@{}?arch={architecture}",
            name.replace('+', "%2B"),
            version.replace('+', "%2B")
        ),
        // Debian's licences are in the image, as text.
        licence: None,
    })
}

fn document(image: Image, components: &BTreeSet<Component>) -> Value {
    let list = components.iter().map(|c| {
        let mut one = json!({
            "type": "library",
            "bom-ref": c.purl,
            "name": c.name,
            "version": c.version,
            "purl": c.purl,
        });
        if let Some(licence) = &c.licence {
            one["licenses"] = json!([{"expression": licence}]);
        }
        one
    });
    json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {
            "type": "container",
            "name": format!("lamina/{}", image.name),
            "version": VERSION,
        }},
        "components": list.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::catalogue::NODE_AGENT;
    use super::*;

    #[test]
    fn crates_are_read_from_the_tree() {
        let one = of_crate("ahash v0.8.12|MIT OR Apache-2.0 (*)").unwrap();
        assert_eq!(one.purl, "pkg:cargo/ahash@0.8.12");
        assert_eq!(one.licence.as_deref(), Some("MIT OR Apache-2.0"));
        let own = of_crate("lamina-crds v0.1.0 (/src/crds)|Apache-2.0").unwrap();
        assert_eq!(
            (own.name.as_str(), own.version.as_str()),
            ("lamina-crds", "0.1.0")
        );
        assert_eq!(of_crate("[build-dependencies]"), None);
    }

    #[test]
    fn debian_packages_are_read_from_their_control_files() {
        let control = "Package: libstdc++6\nArchitecture: amd64\nVersion: 12.2.0-14+deb12u1\n";
        let one = of_debian(control).unwrap();
        assert_eq!(
            one.purl,
            "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64"
        );
    }

    #[test]
    fn every_component_is_referred_to_once() {
        let lines = ["a v1.0.0|MIT", "a v1.0.0|MIT (*)", "b v2.0.0|"];
        let all: BTreeSet<_> = lines.into_iter().filter_map(of_crate).collect();
        let text = document(NODE_AGENT, &all);
        assert_eq!(text["components"].as_array().unwrap().len(), 2);
        assert_eq!(text["components"][0]["licenses"][0]["expression"], "MIT");
        assert!(text["components"][1].get("licenses").is_none());
    }
}
