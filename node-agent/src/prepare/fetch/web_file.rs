//! A file of a web server.

use super::error::FetchError;
use super::origin::{Opened, Origin, Resume};
use super::web::Web;
use crate::causes::with_causes;
use async_trait::async_trait;
use futures::{StreamExt as _, TryStreamExt as _};
use http::StatusCode;
use http::header::{CONTENT_RANGE, ETAG, HeaderMap, HeaderValue, IF_RANGE, LAST_MODIFIED, RANGE};
use reqwest::{Response, Url};

/// The file at `url`.
#[derive(Debug)]
pub(super) struct WebFile {
    pub web: Web,
    pub url: Url,
    /// Only for the server of `url`.
    pub secret: HeaderMap,
}

#[async_trait]
impl Origin for WebFile {
    async fn open(&self, resume: Option<&Resume>) -> Result<Opened, FetchError> {
        let mut open = HeaderMap::new();
        if let Some(resume) = resume
            && let Ok(validator) = HeaderValue::from_str(&resume.validator)
        {
            let range = HeaderValue::try_from(format!("bytes={}-", resume.offset));
            open.insert(RANGE, range.map_err(|_| FetchError::WrongLength)?);
            open.insert(IF_RANGE, validator);
        }
        let response = self.web.get(&self.url, &self.secret, &open).await?;
        match response.status() {
            StatusCode::OK => Ok(opened(0, response.content_length(), response)),
            StatusCode::PARTIAL_CONTENT if open.contains_key(RANGE) => {
                let (start, total) = content_range(response.headers())?;
                Ok(opened(start, total, response))
            }
            // It became shorter than the part already received.
            StatusCode::RANGE_NOT_SATISFIABLE if resume.is_some() => self.open(None).await,
            status => Err(FetchError::Status(status)),
        }
    }
}

fn opened(start: u64, total: Option<u64>, response: Response) -> Opened {
    Opened {
        start,
        total,
        validator: validator(response.headers()),
        body: response
            .bytes_stream()
            .map_err(|e| with_causes(&e.without_url()))
            .boxed(),
    }
}

/// An identifier of exactly these bytes: a strong entity tag, else the time of the last change.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name)?.to_str().ok();
    let tag = text(ETAG).filter(|tag| !tag.starts_with("W/"));
    tag.or_else(|| text(LAST_MODIFIED)).map(str::to_owned)
}

/// `bytes 5-9/10`: the first byte, and the total size if given.
fn content_range(headers: &HeaderMap) -> Result<(u64, Option<u64>), FetchError> {
    let parse = || {
        let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
        let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
        let start = range.split_once('-')?.0.parse().ok()?;
        let total = match total {
            "*" => None,
            total => Some(total.parse().ok()?),
        };
        Some((start, total))
    };
    parse().ok_or(FetchError::WrongLength)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_and_nonsense_is_refused() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, text.parse().unwrap());
            content_range(&headers).ok()
        };
        assert_eq!(read("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(read("bytes 5-9/*"), Some((5, None)));
        for text in ["bytes */10", "5-9/10", "bytes 5-9", "bytes x-9/10"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_weak_tag_names_no_bytes() {
        let mut headers = HeaderMap::new();
        headers.insert(ETAG, "W/\"1\"".parse().unwrap());
        assert_eq!(validator(&headers), None);
        headers.insert(
            LAST_MODIFIED,
            "Sun, 06 Nov 1994 08:49:37 GMT".parse().unwrap(),
        );
        assert!(validator(&headers).unwrap().starts_with("Sun"));
        headers.insert(ETAG, "\"1\"".parse().unwrap());
        assert_eq!(validator(&headers).as_deref(), Some("\"1\""));
    }
}
