//! A registry of a few lines.

use super::*;
use serde_json::json;

/// Parts of an artifact of one layer.
fn artifact(file: &[u8]) -> (Vec<u8>, String) {
    let layer = format!("sha256:{}", Digest::of(file));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": "x", "size": 2},
        "layers": [{"mediaType": "application/octet-stream", "digest": layer, "size": file.len()}],
    });
    (manifest.to_string().into_bytes(), layer)
}

/// A registry that requires a token, which it issues for `login`; the layer is on another server.
async fn registry(file: &'static [u8], login: &'static str, elsewhere: String) -> Server {
    let (manifest, layer) = artifact(file);
    let digest = Digest::of(&manifest);
    serve(move |_, head| {
        let path = head.split(' ').nth(1).unwrap();
        let lower = head.to_ascii_lowercase();
        let host = lower
            .split("host: ")
            .nth(1)
            .unwrap()
            .lines()
            .next()
            .unwrap();
        let has = |wanted: &str| lower.contains(&format!("authorization: {wanted}"));
        if path.starts_with("/token?service=files&scope=pull") {
            return if login.is_empty() || has(login) {
                reply("200 OK", "", br#"{"token":"t0ken"}"#)
            } else {
                reply("401 Unauthorized", "", b"")
            };
        }
        if !has("bearer t0ken") {
            let challenge = format!(
                "www-authenticate: Bearer realm=\"http://{host}/token\",\
                 service=\"files\",scope=\"pull\"\r\n"
            );
            return reply("401 Unauthorized", &challenge, b"");
        }
        match path {
            "/v2/team/model/manifests/v1" => reply("200 OK", "", &manifest),
            // Content other than the digest's.
            p if p == format!("/v2/team/model/manifests/sha256:{}", "0".repeat(64)) => {
                reply("200 OK", "", &manifest)
            }
            p if p == format!("/v2/team/model/manifests/sha256:{digest}") => {
                reply("200 OK", "", &manifest)
            }
            p if p == format!("/v2/team/model/blobs/{layer}") => to(&elsewhere),
            _ => reply("404 Not Found", "", b""),
        }
    })
    .await
}

fn plain(registry: &Server) -> Fetcher {
    let name = registry.address.to_string();
    fetcher_with(|args| args.source_plain_registry = vec![name])
}

#[tokio::test]
async fn an_artifact_is_fetched_by_tag_and_by_digest() {
    let store = serve(|_, _| reply("200 OK", "", b"model")).await;
    let registry = registry(b"model", "", store.url("/")).await;
    let fetcher = plain(&registry);
    let by = |version: &str| format!("oci://{}/team/model{version}", registry.address);
    assert_eq!(fetch(&fetcher, &by(":v1")).await.unwrap(), b"model");
    let digest = Digest::of(&artifact(b"model").0);
    let by_digest = by(&format!("@sha256:{digest}"));
    assert_eq!(fetch(&fetcher, &by_digest).await.unwrap(), b"model");
    for head in store.heads() {
        assert!(
            !head.contains("authorization"),
            "the token is the registry's: {head}"
        );
    }
    let forged = by(&format!("@sha256:{}", "0".repeat(64)));
    let failure = refused(&fetcher, &forged).await;
    assert!(
        failure.message.contains("does not match its manifest"),
        "{failure}"
    );
    let failure = refused(&fetcher, &by(":v2")).await;
    assert!(failure.message.contains("404"), "{failure}");
}

#[tokio::test]
async fn a_layer_that_is_not_what_the_manifest_names_is_refused() {
    let store = serve(|_, _| reply("200 OK", "", b"other")).await;
    let registry = registry(b"model", "", store.url("/")).await;
    let uri = format!("oci://{}/team/model:v1", registry.address);
    let failure = refused(&plain(&registry), &uri).await;
    assert!(
        failure.message.contains("does not match its manifest"),
        "{failure}"
    );
}

#[tokio::test]
async fn a_registry_is_shown_its_own_login_alone() {
    let store = serve(|_, _| reply("200 OK", "", b"model")).await;
    // `me:hidden`, in lower case as seen by the server.
    let registry = registry(b"model", "basic bwu6aglkzgvu", store.url("/")).await;
    let fetcher = plain(&registry);
    let uri = format!("oci://{}/team/model:v1", registry.address);
    let config =
        |host: &str| json!({"auths": {host: {"auth": "bWU6aGlkZGVu"}}, "other": 1}).to_string();
    let address = registry.address.to_string();
    let url = format!("https://{address}/v2/");
    for config in [config(&address), config(&url)] {
        let secret = secret(&[(".dockerconfigjson", &config)]);
        let got = fetch_with(&fetcher, &uri, &secret, None).await;
        assert_eq!(got.unwrap(), b"model");
    }
    let basic = secret(&[("username", "me"), ("password", "hidden")]);
    assert!(fetch_with(&fetcher, &uri, &basic, None).await.is_ok());
    let others = secret(&[(".dockerconfigjson", &config("other.example"))]);
    let failure = fetch_with(&fetcher, &uri, &others, None).await.unwrap_err();
    assert!(failure.message.contains("401"), "{failure}");
}

#[tokio::test]
async fn a_registry_is_asked_by_https_unless_it_is_named() {
    let registry = registry(b"model", "", String::new()).await;
    let uri = format!("oci://{}/team/model:v1", registry.address);
    refused(&fetcher(), &uri).await;
    assert_eq!(registry.heads(), [""; 0]);
}

#[tokio::test]
async fn a_hubs_file_is_fetched_with_its_token() {
    let hub = serve(|_, head| {
        assert!(head.starts_with("GET /org/name/resolve/v1/m.pt "), "{head}");
        reply("200 OK", "", b"model")
    })
    .await;
    let url = hub.url("/");
    let fetcher = fetcher_with(|args| args.source_hub = url);
    let secret = secret(&[("HF_TOKEN", "hidden")]);
    let got = fetch_with(&fetcher, "hf://org/name/m.pt@v1", &secret, None).await;
    assert_eq!(got.unwrap(), b"model");
    assert!(hub.heads()[0].contains("authorization: bearer hidden"));
}
