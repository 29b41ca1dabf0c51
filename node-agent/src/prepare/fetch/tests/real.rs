//! Third-party servers: an S3 gateway that checks signatures, and a registry that requires a login.
//! `cargo xtask setup` builds both.

use super::*;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{ObjectStoreExt as _, PutPayload};
use serde_json::json;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// Time for a server to listen, on a busy machine.
const SOON: Duration = Duration::from_secs(30);
const KEY: &str = "someone";
const HIDDEN: &str = "hidden-key";
const BUCKET: &str = "models";

/// A server on this machine, killed on drop.
struct Real {
    address: SocketAddr,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Real {
    /// Starts `program` of `LAMINA_SERVERS` as `set` says, given its folder and address.
    async fn start(program: &str, set: impl FnOnce(&mut Command, &std::path::Path, &str)) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let servers = std::env::var_os("LAMINA_SERVERS");
        let servers = servers.expect("LAMINA_SERVERS is not set: run `cargo xtask setup`");
        // Free a moment ago; if it is taken meanwhile, the test fails.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new(PathBuf::from(servers).join(program));
        set(&mut command, folder.path(), &address.to_string());
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = quiet.stderr(Stdio::null()).spawn().unwrap();
        let mut server = Self {
            address,
            child,
            _folder: folder,
        };
        let began = Instant::now();
        while std::net::TcpStream::connect(address).is_err() {
            assert!(began.elapsed() < SOON, "{program} does not listen");
            assert_eq!(server.child.try_wait().unwrap(), None, "{program} ended");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        server
    }

    async fn gateway() -> Self {
        Self::start("versitygw", |command, folder, address| {
            let (objects, notes) = (folder.join("objects"), folder.join("notes"));
            std::fs::create_dir_all(objects.join(BUCKET)).unwrap();
            std::fs::create_dir_all(&notes).unwrap();
            command.args(["--access", KEY, "--secret", HIDDEN, "--port", address]);
            command.args(["--region", "eu-north-1", "posix", "--sidecar"]);
            command.arg(notes).arg(objects);
        })
        .await
    }

    async fn registry() -> Self {
        Self::start("registry", |command, folder, address| {
            // `me:hidden`, as htpasswd writes it.
            let login = "me:$2a$04$Y/1.IWdRUJZa78s6VRiAke6eDZCw40ynur1026WTFFoevoalEPtDi\n";
            let (users, config) = (folder.join("users"), folder.join("config.json"));
            std::fs::write(&users, login).unwrap();
            let settings = json!({
                "version": 0.1,
                "storage": {"filesystem": {"rootdirectory": folder.join("data")}},
                "http": {"addr": address},
                "auth": {"htpasswd": {"realm": "models", "path": users}},
            });
            std::fs::write(&config, settings.to_string()).unwrap();
            command.arg("serve").arg(config);
        })
        .await
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Puts `content` into the model store, by the library's own client.
    async fn put(&self, name: &str, content: &'static [u8]) {
        let store = AmazonS3Builder::new()
            .with_endpoint(self.url(""))
            .with_allow_http(true)
            .with_bucket_name(BUCKET)
            .with_region("eu-north-1")
            .with_access_key_id(KEY)
            .with_secret_access_key(HIDDEN)
            .build()
            .unwrap();
        let payload = PutPayload::from_static(content);
        store.put(&Path::from(name), payload).await.unwrap();
    }

    /// Pushes `file` as an artifact of one layer, and returns its manifest's digest.
    async fn push(&self, name: &str, file: &'static [u8]) -> Digest {
        let config = b"{}";
        for blob in [&config[..], file] {
            let begin = format!("/v2/{name}/blobs/uploads/");
            let begun = self.send("POST", &begin, "", b"").await;
            let place = begun.headers()["location"].to_str().unwrap();
            let end = format!("{place}&digest=sha256:{}", Digest::of(blob));
            let path = end.split_once("/v2/").unwrap().1;
            let end = format!("/v2/{path}");
            let put = self
                .send("PUT", &end, "application/octet-stream", blob)
                .await;
            assert_eq!(put.status(), 201);
        }
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let described = |kind: &str, blob: &[u8]| {
            let digest = format!("sha256:{}", Digest::of(blob));
            json!({"mediaType": kind, "digest": digest, "size": blob.len()})
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": kind,
            "artifactType": "application/vnd.lamina.model",
            "config": described("application/vnd.oci.empty.v1+json", config),
            "layers": [described("application/octet-stream", file)],
        });
        let manifest = manifest.to_string().into_bytes();
        let path = format!("/v2/{name}/manifests/v1");
        assert_eq!(self.send("PUT", &path, kind, &manifest).await.status(), 201);
        Digest::of(&manifest)
    }

    async fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> reqwest::Response {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client
            .request(method.parse().unwrap(), self.url(path))
            .basic_auth("me", Some("hidden"))
            .header("content-type", kind)
            .body(body.to_vec());
        request.send().await.unwrap()
    }
}

#[tokio::test]
async fn an_object_of_a_real_gateway_is_fetched_and_a_wrong_key_told() {
    let gateway = Real::gateway().await;
    gateway.put("dir/m.pt", b"a model").await;
    let keys = |hidden: &str| {
        secret(&[
            ("AWS_ACCESS_KEY_ID", KEY),
            ("AWS_SECRET_ACCESS_KEY", hidden),
            ("AWS_REGION", "eu-north-1"),
            ("S3_ENDPOINT", &gateway.address.to_string()),
            ("S3_USE_HTTPS", "0"),
        ])
    };
    let digest = Digest::of(b"a model");
    let own = keys(HIDDEN);
    let got = fetch_with(&fetcher(), "s3://models/dir/m.pt", &own, Some(&digest)).await;
    assert_eq!(got.unwrap(), b"a model");
    for (uri, keys, said) in [
        ("s3://models/dir/m.pt", keys("wrong-key"), "403"),
        ("s3://models/none", keys(HIDDEN), "404"),
    ] {
        let failure = fetch_with(&fetcher(), uri, &keys, None).await;
        let failure = failure.unwrap_err();
        assert!(failure.message.contains(said), "{failure}");
    }
}

#[tokio::test]
async fn an_artifact_of_a_real_registry_is_fetched_by_its_login() {
    let registry = Real::registry().await;
    let manifest = registry.push("team/model", b"a model").await;
    let address = registry.address.to_string();
    let plain = fetcher_with(|args| args.source_plain_registry = vec![address.clone()]);
    let login = secret(&[("username", "me"), ("password", "hidden")]);
    for version in [":v1".to_owned(), format!("@sha256:{manifest}")] {
        let uri = format!("oci://{address}/team/model{version}");
        let got = fetch_with(&plain, &uri, &login, None).await;
        assert_eq!(got.unwrap(), b"a model");
    }
    let uri = format!("oci://{address}/team/model:v1");
    let failure = refused(&plain, &uri).await;
    assert!(failure.message.contains("401"), "{failure}");
    let uri = format!("oci://{address}/team/model:v2");
    let failure = fetch_with(&plain, &uri, &login, None).await.unwrap_err();
    assert!(failure.message.contains("404"), "{failure}");
}
