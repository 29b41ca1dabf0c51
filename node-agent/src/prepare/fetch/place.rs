//! Parses a source's address.

use super::error::FetchError;
use super::objects::Cloud;
use super::registry::Reference;
use reqwest::Url;
use std::path::{Component, Path, PathBuf};

/// The location of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Web(Url),
    Hub(HubFile),
    Object(Cloud, Url),
    Registry(Reference),
    /// In the folder for files.
    File(PathBuf),
    /// In the folder where the claim is mounted.
    Claim {
        claim: String,
        path: PathBuf,
    },
}

/// A file of a repository of the hub.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct HubFile {
    /// `org/name`.
    repository: [String; 2],
    path: Vec<String>,
    revision: String,
}

impl Place {
    /// Parses `uri`.
    ///
    /// # Errors
    /// It cannot be fetched.
    pub(super) fn parse(uri: &str) -> Result<Self, FetchError> {
        let (scheme, rest) = uri.split_once("://").ok_or_else(|| {
            FetchError::Uri("it is no address; write https://HOST/PATH, for example".to_owned())
        })?;
        let url = || Url::parse(uri).map_err(|e| FetchError::Uri(format!("it is no address: {e}")));
        match scheme {
            "http" | "https" => Ok(Self::Web(url()?)),
            "s3" => Ok(Self::Object(Cloud::S3, url()?)),
            "gs" => Ok(Self::Object(Cloud::Google, url()?)),
            "az" => Ok(Self::Object(Cloud::Azure, url()?)),
            "oci" => Reference::parse(rest).map(Self::Registry),
            "hf" => HubFile::parse(rest).map(Self::Hub),
            "file" => below(rest.strip_prefix('/').unwrap_or_default()).map(Self::File),
            "pvc" => {
                let (claim, path) = rest.split_once('/').unwrap_or((rest, ""));
                let path = below(path)?;
                below(claim)?;
                Ok(Self::Claim {
                    claim: claim.to_owned(),
                    path,
                })
            }
            _ => Err(FetchError::Uri(
                "its scheme is unknown; use https, http, s3, gs, az, oci, hf, pvc or file"
                    .to_owned(),
            )),
        }
    }
}

/// A path without `..`.
fn below(path: &str) -> Result<PathBuf, FetchError> {
    let path = Path::new(path);
    let is_name = |c| matches!(c, Component::Normal(_));
    if path.as_os_str().is_empty() || !path.components().all(is_name) {
        return Err(FetchError::Uri(
            "its path must have names only, without `..`; write file:///PATH or \
             pvc://CLAIM/PATH"
                .to_owned(),
        ));
    }
    Ok(path.to_owned())
}

impl HubFile {
    /// `org/name/path@revision`, with an optional revision.
    fn parse(text: &str) -> Result<Self, FetchError> {
        let (path, revision) = text.rsplit_once('@').unwrap_or((text, "main"));
        let parts: Vec<&str> = path.split('/').collect();
        let is_name = |part: &str| !matches!(part, "" | "." | "..");
        let is_fine = is_name(revision) && parts.iter().all(|part| is_name(part));
        match parts.as_slice() {
            [org, name, path @ ..] if is_fine && !path.is_empty() => Ok(Self {
                repository: [(*org).to_owned(), (*name).to_owned()],
                path: path.iter().map(|part| (*part).to_owned()).collect(),
                revision: revision.to_owned(),
            }),
            _ => Err(FetchError::Uri(
                "it names no file; write hf://ORG/NAME/PATH@REVISION".to_owned(),
            )),
        }
    }

    /// Its address at the hub.
    ///
    /// # Errors
    /// The hub's own address is invalid.
    pub(super) fn at(&self, hub: &str) -> Result<Url, FetchError> {
        let wrong = || FetchError::Tls("the address of the hub is no http or https one".to_owned());
        let mut url = Url::parse(hub).map_err(|_| wrong())?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong());
        }
        url.path_segments_mut()
            .map_err(|()| wrong())?
            .pop_if_empty()
            .extend(&self.repository)
            .push("resolve")
            .push(&self.revision)
            .extend(&self.path);
        Ok(url)
    }
}

/// `uri` for people, without possible secrets: user, password and the query of a signed one.
/// Unchanged if it is not a URI.
pub(in crate::prepare) fn shown(uri: &str) -> String {
    let Ok(mut url) = Url::parse(uri) else {
        return uri.to_owned();
    };
    // Only URIs without a host refuse this, and they have no user.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_a_uri_are_not_shown() {
        let cases = [
            (
                "https://me:secret@host:8443/m.pt?signature=1#x",
                "https://host:8443/m.pt",
            ),
            ("s3://key:secret@bucket/m.pt?key=1", "s3://bucket/m.pt"),
            ("hf://Org/name/m.pt@main", "hf://Org/name/m.pt@main"),
            (
                "oci://registry:5000/m:v1@sha256:12",
                "oci://registry:5000/m:v1@sha256:12",
            ),
            ("m.pt", "m.pt"),
        ];
        for (uri, want) in cases {
            assert_eq!(shown(uri), want);
        }
    }

    #[test]
    fn what_cannot_be_fetched_says_what_can() {
        for uri in [
            "ftp://host/m.pt",
            "m.pt",
            "http://",
            "file:///../etc/passwd",
            "file://host/etc/passwd",
            "file:///",
            "pvc://claim",
            "pvc://claim/../other/m.pt",
            "pvc://../m.pt",
            "hf://org/m.pt",
            "hf://org/name/../m.pt",
            "oci://registry/m",
        ] {
            let failure = Place::parse(uri).unwrap_err().into_failure(uri);
            assert!(!failure.retryable, "{uri}");
        }
    }

    #[test]
    fn files_of_the_hub_have_their_addresses() {
        let at = |uri: &str, hub: &str| match Place::parse(uri).unwrap() {
            Place::Hub(file) => file.at(hub).unwrap().to_string(),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            at("hf://org/name/a/m 1.pt@v1", "https://hub.example"),
            "https://hub.example/org/name/resolve/v1/a/m%201.pt"
        );
        assert_eq!(
            at("hf://org/name/m.pt", "http://mirror/hub/"),
            "http://mirror/hub/org/name/resolve/main/m.pt"
        );
    }

    #[test]
    fn local_paths_go_down() {
        assert_eq!(
            Place::parse("file:///a/m.pt").unwrap(),
            Place::File("a/m.pt".into())
        );
        assert_eq!(
            Place::parse("pvc://claim/a/m.pt").unwrap(),
            Place::Claim {
                claim: "claim".into(),
                path: "a/m.pt".into()
            }
        );
    }
}
