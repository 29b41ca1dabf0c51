//! A store in a bucket of S3, or of a compatible service.

use super::{BlobStore, StoreError};
use object_store::aws::AmazonS3Builder;
use object_store::prefix::PrefixStore;
use object_store::{Certificate, ClientOptions, RetryConfig};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Time limit of one request with up to 8 MiB: a link of 2 Mbit/s carries that.
const REQUEST: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(5);
/// Retries of a request, and their time limit: agents retry too.
const RETRIES: usize = 3;
const RETRY: Duration = Duration::from_secs(20);

/// Where the store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    /// Its name.
    pub name: String,
    /// Prefix of the names of blobs; may be empty.
    pub prefix: String,
    /// `https://minio:9000`; AWS if absent.
    pub endpoint: Option<String>,
    /// Its region.
    pub region: String,
    /// The bucket's name is part of the host name, as AWS wants it.
    pub is_virtual_host: bool,
    /// Certificates of further authorities to trust for the endpoint, in PEM.
    pub authorities: Option<PathBuf>,
}

impl BlobStore {
    /// A store in `bucket`. Credentials come from the environment:
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or the token of a workload's identity.
    /// Nothing is requested yet.
    ///
    /// # Errors
    /// The settings are invalid, or the authorities cannot be read.
    pub fn bucket(bucket: &Bucket) -> Result<Self, StoreError> {
        Self::by(AmazonS3Builder::from_env(), bucket)
    }

    /// The same with the keys of `builder`.
    fn by(builder: AmazonS3Builder, bucket: &Bucket) -> Result<Self, StoreError> {
        let mut builder = builder
            .with_bucket_name(&bucket.name)
            .with_region(&bucket.region)
            .with_virtual_hosted_style_request(bucket.is_virtual_host)
            .with_client_options(client(bucket)?)
            .with_retry(RetryConfig {
                max_retries: RETRIES,
                retry_timeout: RETRY,
                ..RetryConfig::default()
            });
        if let Some(endpoint) = &bucket.endpoint {
            builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        }
        let objects = builder.build().map_err(StoreError::Bucket)?;
        Ok(if bucket.prefix.is_empty() {
            Self::new(Arc::new(objects))
        } else {
            Self::new(Arc::new(PrefixStore::new(objects, bucket.prefix.as_str())))
        })
    }
}

fn client(bucket: &Bucket) -> Result<ClientOptions, StoreError> {
    let mut client = ClientOptions::new()
        .with_allow_http(true)
        .with_timeout(REQUEST)
        .with_connect_timeout(CONNECT);
    if let Some(path) = &bucket.authorities {
        let pem = std::fs::read(path).map_err(StoreError::Authorities)?;
        let bundle = Certificate::from_pem_bundle(&pem).map_err(StoreError::Bucket)?;
        for certificate in bundle {
            client = client.with_root_certificate(certificate);
        }
    }
    Ok(client)
}

#[cfg(test)]
mod tests {
    //! Against a third-party S3 gateway, which `cargo xtask setup` builds.

    use super::*;
    use crate::store::Collected;
    use bytes::Bytes;
    use lamina_model::Digest;
    use std::collections::BTreeSet;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    /// Time for the gateway to listen, on a busy machine.
    const SOON: Duration = Duration::from_secs(30);

    struct Gateway {
        address: SocketAddr,
        child: Child,
        _folder: tempfile::TempDir,
    }

    impl Drop for Gateway {
        fn drop(&mut self) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }

    impl Gateway {
        /// With the bucket `blobs`.
        async fn start() -> Self {
            let _ = rustls::crypto::ring::default_provider().install_default();
            let servers = std::env::var_os("LAMINA_SERVERS");
            let servers = servers.expect("LAMINA_SERVERS is not set: run `cargo xtask setup`");
            let folder = tempfile::tempdir().unwrap();
            let (objects, notes) = (folder.path().join("objects"), folder.path().join("notes"));
            std::fs::create_dir_all(objects.join("blobs")).unwrap();
            std::fs::create_dir_all(&notes).unwrap();
            let free = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = free.local_addr().unwrap();
            drop(free);
            let mut command = Command::new(PathBuf::from(servers).join("versitygw"));
            command.args(["--access", "someone", "--secret", "hidden-key", "--port"]);
            command.arg(address.to_string());
            command.args(["posix", "--sidecar"]).arg(notes).arg(objects);
            let quiet = command.stdin(Stdio::null()).stdout(Stdio::null());
            let child = quiet.stderr(Stdio::null()).spawn().unwrap();
            let mut gateway = Self {
                address,
                child,
                _folder: folder,
            };
            let began = Instant::now();
            while TcpStream::connect(address).is_err() {
                assert!(began.elapsed() < SOON, "the gateway does not listen");
                assert_eq!(gateway.child.try_wait().unwrap(), None, "it ended");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            gateway
        }

        fn store(&self, bucket: &str, prefix: &str, key: &str) -> BlobStore {
            let builder = AmazonS3Builder::new()
                .with_access_key_id("someone")
                .with_secret_access_key(key);
            let bucket = Bucket {
                name: bucket.to_owned(),
                prefix: prefix.to_owned(),
                endpoint: Some(format!("http://{}/", self.address)),
                region: "us-east-1".to_owned(),
                is_virtual_host: false,
                authorities: None,
            };
            BlobStore::by(builder, &bucket).unwrap()
        }
    }

    #[tokio::test]
    async fn what_was_put_into_a_bucket_is_there_for_the_next_process() {
        let gateway = Gateway::start().await;
        let store = gateway.store("blobs", "site-1", "hidden-key");
        let digest = store.put(Bytes::from("hello")).await.unwrap();
        assert_eq!(store.put(Bytes::from("hello")).await.unwrap(), digest);
        let next = gateway.store("blobs", "site-1", "hidden-key");
        assert_eq!(next.get(&digest).await.unwrap(), "hello");
        assert_eq!(next.size(&digest).await.unwrap(), Some(5));
        assert_eq!(next.get_range(&digest, 1, 3).await.unwrap(), "ell");
        assert_eq!(next.get_range(&digest, 3, 99).await.unwrap(), "lo");
        assert_eq!(next.total_bytes().await.unwrap(), 5);
        let unknown = Digest::of(b"unknown");
        assert_eq!(next.size(&unknown).await.unwrap(), None);
        let missing = next.get(&unknown).await.unwrap_err();
        assert!(matches!(missing, StoreError::NotFound(_)), "{missing:?}");
        // Another release in the same bucket has its own store.
        let other = gateway.store("blobs", "site-2", "hidden-key");
        assert!(!other.has(&digest).await.unwrap());
    }

    #[tokio::test]
    async fn a_large_blob_and_an_empty_one_appear_as_a_whole_or_not_at_all() {
        let gateway = Gateway::start().await;
        let store = gateway.store("blobs", "", "hidden-key");
        // More than one part.
        let part: Vec<u8> = (0..=255_u8).cycle().take(3 << 20).collect();
        let content: Vec<u8> = part.iter().copied().cycle().take(5 * (3 << 20)).collect();
        let digest = Digest::of(&content);
        let mut writer = store.writer(digest.clone()).await.unwrap();
        for _ in 0..5 {
            writer.write(Bytes::from(part.clone())).await.unwrap();
        }
        assert!(!store.has(&digest).await.unwrap());
        writer.finish().await.unwrap();
        assert_eq!(store.get(&digest).await.unwrap(), content);
        let empty = Digest::of(b"");
        let writer = store.writer(empty.clone()).await.unwrap();
        writer.finish().await.unwrap();
        assert_eq!(store.size(&empty).await.unwrap(), Some(0));
        let other = Digest::of(b"announced");
        let mut writer = store.writer(other.clone()).await.unwrap();
        writer.write(Bytes::from(part)).await.unwrap();
        let refused = writer.finish().await.unwrap_err();
        assert!(matches!(refused, StoreError::HashMismatch { .. }));
        assert!(!store.has(&other).await.unwrap());
    }

    #[tokio::test]
    async fn what_nobody_needs_leaves_a_bucket() {
        let gateway = Gateway::start().await;
        let store = gateway.store("blobs", "site-1", "hidden-key");
        let needed = store.put(Bytes::from("needed")).await.unwrap();
        let gone = store.put(Bytes::from("gone")).await.unwrap();
        let keep = BTreeSet::from([needed.clone()]);
        let none = store.gc(&keep, Duration::from_secs(60)).await.unwrap();
        assert_eq!(none, Collected::default());
        let once = store.gc(&keep, Duration::ZERO).await.unwrap();
        assert_eq!(once, Collected { blobs: 1, bytes: 4 });
        assert!(!store.has(&gone).await.unwrap());
        assert!(store.has(&needed).await.unwrap());
    }

    #[tokio::test]
    async fn a_wrong_key_or_bucket_is_an_error_and_no_missing_blob() {
        let gateway = Gateway::start().await;
        let digest = Digest::of(b"any");
        let wrong = gateway.store("blobs", "", "wrong-key");
        let refused = wrong.put(Bytes::from("any")).await.unwrap_err();
        assert!(matches!(refused, StoreError::Storage(_)), "{refused:?}");
        let refused = wrong.size(&digest).await.unwrap_err();
        assert!(matches!(refused, StoreError::Storage(_)), "{refused:?}");
        let nowhere = gateway.store("other", "", "hidden-key");
        let refused = nowhere.put(Bytes::from("any")).await.unwrap_err();
        assert!(matches!(refused, StoreError::Storage(_)), "{refused:?}");
    }
}
