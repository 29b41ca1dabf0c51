//! Objects in S3, Google Cloud Storage, Azure and compatible stores. Every request goes
//! through our own client, which checks addresses.

use super::credentials::Credentials;
use super::error::FetchError;
use super::origin::{Opened, Origin, Resume};
use super::web::Web;
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use http::StatusCode;
use http_body_util::BodyExt as _;
use object_store::aws::AmazonS3Builder;
use object_store::azure::{MicrosoftAzureBuilder, split_sas};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectStore, RetryConfig};
use reqwest::Url;
use std::sync::{Arc, Mutex, PoisonError};

/// The kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cloud {
    S3,
    Google,
    Azure,
}

/// An object.
#[derive(Debug)]
pub(super) struct Object {
    store: Box<dyn ObjectStore>,
    path: Path,
    /// The error of the last request, if it failed.
    last: Arc<Mutex<Option<FetchError>>>,
}

impl Object {
    /// The object at `url`, `s3://bucket/key`.
    ///
    /// # Errors
    /// The address names none, or the Secret is invalid.
    pub(super) fn new(
        cloud: Cloud,
        url: &Url,
        web: Web,
        secret: &Credentials,
    ) -> Result<Self, FetchError> {
        let bucket = url.host_str().unwrap_or_default();
        let path = Path::from_url_path(url.path()).unwrap_or_default();
        if bucket.is_empty() || path.as_ref().is_empty() {
            return Err(FetchError::Uri(format!(
                "it names no object; write {}://BUCKET/KEY",
                url.scheme()
            )));
        }
        let last = Arc::default();
        let connector = Checked {
            web,
            last: Arc::clone(&last),
        };
        let store = match cloud {
            Cloud::S3 => s3(bucket, secret, connector)?,
            Cloud::Google => google(bucket, secret, connector)?,
            Cloud::Azure => azure(bucket, secret, connector)?,
        };
        Ok(Self { store, path, last })
    }

    async fn get(&self, options: GetOptions) -> Result<Opened, object_store::Error> {
        let result = self.store.get_opts(&self.path, options).await?;
        Ok(Opened {
            start: result.range.start,
            total: Some(result.meta.size),
            validator: result.meta.e_tag.clone(),
            // The store's message may contain what a server sent.
            body: result
                .into_stream()
                .map_err(|_| "the connection broke".to_owned())
                .boxed(),
        })
    }

    /// Why the last request failed.
    fn why(&self) -> FetchError {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.take().unwrap_or_else(|| {
            FetchError::Transport(
                "what it answers makes no sense; check spec.source.uri, and endpoint and \
                 region in the Secret of spec.source.secretRef"
                    .to_owned(),
            )
        })
    }
}

#[async_trait]
impl Origin for Object {
    async fn open(&self, resume: Option<&Resume>) -> Result<Opened, FetchError> {
        let options = GetOptions {
            range: resume.map(|r| GetRange::Offset(r.offset)),
            if_match: resume.map(|r| r.validator.clone()),
            ..GetOptions::default()
        };
        match self.get(options).await {
            Ok(opened) => Ok(opened),
            // The object has changed.
            Err(object_store::Error::Precondition { .. }) if resume.is_some() => {
                self.open(None).await
            }
            Err(_) => Err(self.why()),
        }
    }
}

fn unusable(_: object_store::Error) -> FetchError {
    // The error may show the Secret's contents.
    FetchError::Secret("holds no settings with which objects can be read".to_owned())
}

/// `1`, `true` and similar.
fn is_true(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "1" | "true" | "yes")
}

fn retry() -> RetryConfig {
    // The download retries, and reports it.
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

/// With the entry names of KServe's Secrets.
fn s3(
    bucket: &str,
    secret: &Credentials,
    connector: Checked,
) -> Result<Box<dyn ObjectStore>, FetchError> {
    let endpoint = s3_endpoint(secret)?;
    let is_plain = endpoint.as_ref().is_some_and(|e| e.starts_with("http://"));
    if !is_plain
        && secret
            .text(&["S3_VERIFY_SSL"])?
            .is_some_and(|v| !is_true(v))
    {
        return Err(FetchError::Secret(
            "has S3_VERIFY_SSL off, which is not supported; give the authority's certificate \
             as `ca.crt`"
                .to_owned(),
        ));
    }
    let region = secret.text(&["AWS_REGION", "AWS_DEFAULT_REGION", "S3_REGION"])?;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region.unwrap_or("us-east-1"))
        .with_allow_http(true)
        .with_retry(retry())
        .with_http_connector(connector);
    let virtual_host = secret.text(&["S3_USER_VIRTUAL_BUCKET"])?.map(is_true);
    // Self-hosted servers rarely have a host name for each bucket.
    let is_virtual = virtual_host.unwrap_or(endpoint.is_none());
    builder = builder.with_virtual_hosted_style_request(is_virtual);
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(with_bucket(&endpoint, bucket, is_virtual)?);
    }
    let is_anonymous = secret
        .text(&["awsAnonymousCredential"])?
        .is_some_and(is_true);
    let key = secret.text(&["AWS_ACCESS_KEY_ID"])?;
    let builder = match (key, secret.text(&["AWS_SECRET_ACCESS_KEY"])?) {
        (Some(key), Some(hidden)) if !is_anonymous => {
            let builder = builder
                .with_access_key_id(key)
                .with_secret_access_key(hidden);
            match secret.text(&["AWS_SESSION_TOKEN"])? {
                Some(token) => builder.with_token(token),
                None => builder,
            }
        }
        // Never use the machine's identity: it is not the tenant's.
        _ => builder.with_skip_signature(true),
    };
    Ok(Box::new(builder.build().map_err(unusable)?))
}

/// `https://minio:9000`, in whatever form the Secret has it.
fn s3_endpoint(secret: &Credentials) -> Result<Option<String>, FetchError> {
    let Some(text) = secret.text(&["AWS_ENDPOINT_URL", "S3_ENDPOINT"])? else {
        return Ok(None);
    };
    if text.contains("://") {
        return Ok(Some(text.trim_end_matches('/').to_owned()));
    }
    let is_plain = secret.text(&["S3_USE_HTTPS"])?.is_some_and(|v| !is_true(v));
    let scheme = if is_plain { "http" } else { "https" };
    Ok(Some(format!("{scheme}://{}", text.trim_end_matches('/'))))
}

/// If each bucket is a host, the endpoint includes it.
fn with_bucket(endpoint: &str, bucket: &str, is_virtual: bool) -> Result<String, FetchError> {
    if !is_virtual {
        return Ok(endpoint.to_owned());
    }
    let (scheme, rest) = endpoint
        .split_once("://")
        .ok_or_else(|| FetchError::Secret("has an endpoint that is no address".to_owned()))?;
    Ok(format!("{scheme}://{bucket}.{rest}"))
}

fn google(
    bucket: &str,
    secret: &Credentials,
    connector: Checked,
) -> Result<Box<dyn ObjectStore>, FetchError> {
    let builder = GoogleCloudStorageBuilder::new()
        .with_bucket_name(bucket)
        .with_retry(retry())
        .with_http_connector(connector);
    let key = secret.text(&[
        "gcloud-application-credentials.json",
        "GOOGLE_SERVICE_ACCOUNT_KEY",
    ])?;
    let builder = match key {
        Some(key) => builder.with_service_account_key(key),
        None => builder.with_skip_signature(true),
    };
    Ok(Box::new(builder.build().map_err(unusable)?))
}

fn azure(
    container: &str,
    secret: &Credentials,
    connector: Checked,
) -> Result<Box<dyn ObjectStore>, FetchError> {
    let Some(account) = secret.text(&["AZURE_STORAGE_ACCOUNT_NAME"])? else {
        return Err(FetchError::Secret(
            "lacks AZURE_STORAGE_ACCOUNT_NAME, or spec.source.secretRef is missing".to_owned(),
        ));
    };
    let mut builder = MicrosoftAzureBuilder::new()
        .with_account(account)
        .with_container_name(container)
        .with_allow_http(true)
        .with_retry(retry())
        .with_http_connector(connector);
    if let Some(endpoint) = secret.text(&["AZURE_STORAGE_ENDPOINT"])? {
        builder = builder.with_endpoint(endpoint.to_owned());
    }
    let key = secret.text(&["AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_ACCOUNT_KEY"])?;
    let client = (
        secret.text(&["AZ_CLIENT_ID"])?,
        secret.text(&["AZ_CLIENT_SECRET"])?,
        secret.text(&["AZ_TENANT_ID"])?,
    );
    let sas = secret.text(&["AZURE_STORAGE_SAS_TOKEN"])?;
    let builder = match (key, sas, client) {
        (Some(key), ..) => builder.with_access_key(key),
        (None, Some(sas), _) => builder.with_sas_authorization(split_sas(sas).map_err(unusable)?),
        (None, None, (Some(id), Some(hidden), Some(tenant))) => {
            builder.with_client_secret_authorization(id, hidden, tenant)
        }
        _ => builder.with_skip_signature(true),
    };
    Ok(Box::new(builder.build().map_err(unusable)?))
}

/// Our client, behind the library's interface.
#[derive(Debug, Clone)]
struct Checked {
    web: Web,
    last: Arc<Mutex<Option<FetchError>>>,
}

impl HttpConnector for Checked {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl Checked {
    fn note(&self, error: Option<FetchError>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

#[async_trait]
impl HttpService for Checked {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (head, body) = request.into_parts();
        let url = Url::parse(&head.uri.to_string())
            .map_err(|e| HttpError::new(HttpErrorKind::Unknown, e))?;
        let body = body.collect().await?.to_bytes();
        let mut request = reqwest::Request::new(head.method, url);
        *request.headers_mut() = head.headers;
        *request.body_mut() = Some(body.into());
        let response = self.web.send(request).await.map_err(|error| {
            let said = error.to_string();
            self.note(Some(error));
            HttpError::new(HttpErrorKind::Unknown, std::io::Error::other(said))
        })?;
        let status = response.status();
        let is_bad = !status.is_success() && status != StatusCode::PRECONDITION_FAILED;
        self.note(is_bad.then_some(FetchError::Status(status)));
        let (head, body) = http::Response::<reqwest::Body>::from(response).into_parts();
        let body = body.map_err(|e| HttpError::new(HttpErrorKind::Interrupted, e.without_url()));
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(entries: &[(&str, &str)]) -> Option<String> {
        let entries = entries.iter();
        let secret =
            Credentials::new(entries.map(|(k, v)| ((*k).to_owned(), v.as_bytes().to_vec())));
        s3_endpoint(&secret).unwrap()
    }

    #[test]
    fn endpoints_are_read_as_kserve_writes_them() {
        assert_eq!(endpoint(&[]), None);
        assert_eq!(
            endpoint(&[("S3_ENDPOINT", "minio:9000"), ("S3_USE_HTTPS", "0")]).unwrap(),
            "http://minio:9000"
        );
        assert_eq!(
            endpoint(&[("S3_ENDPOINT", "minio:9000")]).unwrap(),
            "https://minio:9000"
        );
        assert_eq!(
            endpoint(&[("AWS_ENDPOINT_URL", "http://minio:9000/")]).unwrap(),
            "http://minio:9000"
        );
        assert_eq!(
            with_bucket("http://minio:9000", "b", true).unwrap(),
            "http://b.minio:9000"
        );
    }
}
