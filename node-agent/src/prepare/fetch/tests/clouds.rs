//! Object stores of a few lines. The S3 one checks signatures by the published rules, and is itself
//! checked by AWS's published example.

use super::*;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// HMAC of RFC 2104.
fn hmac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let mut block = [0_u8; 64];
    block[..key.len()].copy_from_slice(key);
    let pad = |with: u8| block.map(|b| b ^ with);
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(data);
    let outer = Sha256::new().chain_update(pad(0x5c));
    outer.chain_update(inner.finalize()).finalize().to_vec()
}

/// Whether the head of a request is signed with `secret`, by AWS's version 4.
fn is_signed(head: &str, secret: &str) -> bool {
    signature(head, secret).is_some_and(|(said, right)| said == right)
}

/// The signature of a request, and the expected one.
fn signature(head: &str, secret: &str) -> Option<(String, String)> {
    let mut lines = head.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?, first.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers: BTreeMap<String, String> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let right = headers
        .get("authorization")?
        .strip_prefix("AWS4-HMAC-SHA256 ")?;
    let fields: BTreeMap<&str, &str> = right
        .split(',')
        .filter_map(|field| field.trim().split_once('='))
        .collect();
    let (signed, said) = (fields.get("SignedHeaders")?, fields.get("Signature")?);
    let scope = fields.get("Credential")?.split_once('/')?.1;
    let canonical: String = signed
        .split(';')
        .map(|name| Some(format!("{name}:{}\n", headers.get(name)?)))
        .collect::<Option<_>>()?;
    let payload = headers.get("x-amz-content-sha256")?;
    let request = format!("{method}\n{path}\n{query}\n{canonical}\n{signed}\n{payload}");
    let text = format!(
        "AWS4-HMAC-SHA256\n{}\n{scope}\n{}",
        headers.get("x-amz-date")?,
        hex(&Sha256::digest(request))
    );
    let mut key = format!("AWS4{secret}").into_bytes();
    for part in scope.split('/') {
        key = hmac(&key, part.as_bytes());
    }
    Some(((*said).to_owned(), hex(&hmac(&key, text.as_bytes()))))
}

#[test]
fn the_published_example_is_signed() {
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let head = format!(
        "GET /test.txt HTTP/1.1\r\nHost: examplebucket.s3.amazonaws.com\r\n\
         Authorization: AWS4-HMAC-SHA256 \
         Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
         SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,\
         Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41\r\n\
         Range: bytes=0-9\r\nx-amz-content-sha256:{empty}\r\nx-amz-date: 20130524T000000Z\r\n\r\n"
    );
    assert!(is_signed(&head, "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"));
    assert!(!is_signed(&head, "another"));
}

/// The head of an object's answer.
fn object(tag: &str) -> String {
    format!("etag: \"{tag}\"\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n")
}

/// Serves `file` as `bucket/dir/m.pt` to clients with the secret; the first answer is cut short if
/// `breaks`.
async fn s3(file: &'static [u8], breaks: bool) -> Server {
    serve(move |n, head| {
        if !is_signed(head, "hidden-key") {
            return reply(
                "403 Forbidden",
                "",
                b"<Error><Code>inner words</Code></Error>",
            );
        }
        if !head.starts_with("GET /bucket/dir/m.pt ") {
            return reply(
                "404 Not Found",
                "",
                b"<Error><Code>NoSuchKey</Code></Error>",
            );
        }
        let range = head.lines().find_map(|l| l.strip_prefix("range: bytes="));
        match range {
            None if breaks && n == 0 => announced("200 OK", &object("one"), &file[..3], file.len()),
            None => reply("200 OK", &object("one"), file),
            Some(range) => {
                assert!(head.contains("if-match: \"one\""), "{head}");
                let start: usize = range.trim_end_matches('-').parse().unwrap();
                let headers = format!(
                    "{}content-range: bytes {start}-{}/{}\r\n",
                    object("one"),
                    file.len() - 1,
                    file.len()
                );
                reply("206 Partial Content", &headers, &file[start..])
            }
        }
    })
    .await
}

fn keys(server: &Server, key: &str) -> Credentials {
    secret(&[
        ("AWS_ACCESS_KEY_ID", "someone"),
        ("AWS_SECRET_ACCESS_KEY", key),
        ("S3_ENDPOINT", &server.address.to_string()),
        ("S3_USE_HTTPS", "0"),
        ("S3_VERIFY_SSL", "0"),
    ])
}

#[tokio::test]
async fn an_object_of_s3_is_fetched_with_signed_requests() {
    let server = s3(b"a model", false).await;
    let keys = keys(&server, "hidden-key");
    let digest = Digest::of(b"a model");
    let got = fetch_with(&fetcher(), "s3://bucket/dir/m.pt", &keys, Some(&digest)).await;
    assert_eq!(got.unwrap(), b"a model");
    assert!(server.heads()[0].contains("/us-east-1/s3/"));
    let failure = fetch_with(&fetcher(), "s3://bucket/none", &keys, None).await;
    let failure = failure.unwrap_err();
    assert!(failure.message.contains("404"), "{failure}");
}

#[tokio::test]
async fn an_object_goes_on_where_its_connection_broke() {
    let server = s3(b"a model", true).await;
    let keys = keys(&server, "hidden-key");
    let got = fetch_with(&fetcher(), "s3://bucket/dir/m.pt", &keys, None).await;
    assert_eq!(got.unwrap(), b"a model");
    assert!(
        server.heads()[1].contains("range: bytes=3-"),
        "{:?}",
        server.heads()
    );
}

#[tokio::test]
async fn a_wrong_key_is_told_without_it_and_without_what_the_server_says() {
    let server = s3(b"a model", false).await;
    let keys = keys(&server, "wrong-key");
    let failure = fetch_with(&fetcher(), "s3://bucket/dir/m.pt", &keys, None).await;
    let failure = failure.unwrap_err();
    assert!(failure.message.contains("403"), "{failure}");
    for hidden in ["inner words", "wrong-key", "someone"] {
        assert!(!failure.message.contains(hidden), "{failure}");
    }
}

#[tokio::test]
async fn endpoints_are_checked_as_every_address() {
    let server = s3(b"a model", false).await;
    let strict = fetcher_with(|args| args.source_allow.clear());
    for host in ["127.0.0.1", "localhost"] {
        let endpoint = format!("http://{host}:{}", server.address.port());
        let settings = secret(&[("AWS_ENDPOINT_URL", &endpoint)]);
        let failure = fetch_with(&strict, "s3://bucket/dir/m.pt", &settings, None).await;
        let failure = failure.unwrap_err();
        assert!(failure.message.contains("loopback"), "{failure}");
    }
    assert_eq!(server.heads(), [""; 0]);
}

#[tokio::test]
async fn without_keys_nobodys_identity_is_borrowed() {
    let server = serve(|_, _| reply("200 OK", &object("one"), b"public")).await;
    let settings = secret(&[("AWS_ENDPOINT_URL", &server.url(""))]);
    let got = fetch_with(&fetcher(), "s3://bucket/dir/m.pt", &settings, None).await;
    assert_eq!(got.unwrap(), b"public");
    assert_eq!(server.heads().len(), 1);
    assert!(!server.heads()[0].contains("authorization"));
}

#[tokio::test]
async fn certificates_are_always_checked() {
    let settings = secret(&[("S3_VERIFY_SSL", "0")]);
    let failure = fetch_with(&fetcher(), "s3://bucket/m.pt", &settings, None).await;
    let failure = failure.unwrap_err();
    assert!(failure.message.contains("S3_VERIFY_SSL"), "{failure}");
}

#[tokio::test]
async fn an_object_of_azure_is_fetched() {
    let server = serve(|_, _| reply("200 OK", &object("one"), b"blob")).await;
    let settings = secret(&[
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AZURE_STORAGE_ACCESS_KEY", "aGlkZGVu"),
        ("AZURE_STORAGE_ENDPOINT", &server.url("")),
    ]);
    let got = fetch_with(&fetcher(), "az://container/dir/m.pt", &settings, None).await;
    assert_eq!(got.unwrap(), b"blob");
    let head = &server.heads()[0];
    assert!(head.contains("authorization: sharedkey account:"), "{head}");
    assert!(head.contains("/container/dir/m.pt"), "{head}");
    let failure = refused(&fetcher(), "az://container/m.pt").await;
    assert!(
        failure.message.contains("AZURE_STORAGE_ACCOUNT_NAME"),
        "{failure}"
    );
}

#[tokio::test]
async fn an_object_of_google_is_fetched() {
    let server = serve(|_, _| reply("200 OK", &object("one"), b"object")).await;
    let account = serde_json::json!({
        "private_key": "none", "private_key_id": "none", "client_email": "none",
        "gcs_base_url": server.url(""), "disable_oauth": true,
    });
    let settings = secret(&[("gcloud-application-credentials.json", &account.to_string())]);
    let got = fetch_with(&fetcher(), "gs://bucket/dir/m.pt", &settings, None).await;
    assert_eq!(got.unwrap(), b"object");
    assert!(
        server.heads()[0].contains("/bucket/dir"),
        "{:?}",
        server.heads()
    );
}
