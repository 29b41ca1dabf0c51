//! For hosts that are not Nodes and cannot reach the API server: their ComputeNode, the authorities
//! to trust, and their report go over the operator's session instead. Connects the session with the
//! parts that otherwise use the API server.

mod join;

pub(crate) use join::JoinFile;

use futures::{Stream, StreamExt as _};
use lamina_crds::{ComputeNode, ComputeNodeStatus};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

/// The contents of the session. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Uplink(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    host: String,
    /// The operator's address for this host, whatever it tells others.
    operator: String,
    wish: watch::Sender<Option<ComputeNode>>,
    authorities: watch::Sender<String>,
    report: watch::Sender<Option<Vec<u8>>>,
}

impl Uplink {
    /// Of the host that joined by `join`.
    pub(crate) fn of(join: &JoinFile) -> Self {
        Self(Arc::new(Inner {
            host: join.host.clone(),
            operator: join.operator.clone(),
            wish: watch::Sender::default(),
            authorities: watch::Sender::default(),
            report: watch::Sender::default(),
        }))
    }

    /// Receives the ComputeNode in `json` from the operator.
    pub(crate) fn hear_wish(&self, json: &[u8]) {
        let object: ComputeNode = match serde_json::from_slice(json) {
            Ok(object) => object,
            Err(error) => {
                tracing::error!(%error, "what this host is told cannot be read");
                return;
            }
        };
        if object.metadata.name.as_deref() != Some(self.0.host.as_str()) {
            tracing::error!("what this host is told is another one's");
            return;
        }
        let mut object = object;
        object.spec.operator.clone_from(&self.0.operator);
        self.0.wish.send_replace(Some(object));
    }

    /// Receives the authorities to trust from the operator, in PEM.
    pub(crate) fn hear_authorities(&self, pem: String) {
        if !pem.is_empty() {
            self.0.authorities.send_replace(pem);
        }
    }

    /// Reports for the operator: the last one, now and whenever it changes.
    pub(crate) fn reports(&self) -> watch::Receiver<Option<Vec<u8>>> {
        let mut reports = self.0.report.subscribe();
        reports.mark_changed();
        reports
    }

    /// This host's ComputeNode, whenever the operator sends it.
    pub(crate) fn objects(&self) -> impl Stream<Item = ComputeNode> + Send + use<> {
        WatchStream::new(self.0.wish.subscribe()).filter_map(async |object| object)
    }

    /// The authorities to trust, in PEM, whenever the operator sends them.
    pub(crate) fn bundles(&self) -> impl Stream<Item = String> + Send + use<> {
        let told = WatchStream::new(self.0.authorities.subscribe());
        told.filter_map(async |pem| Some(pem).filter(|pem| !pem.is_empty()))
    }

    /// Sends `status` to the operator.
    ///
    /// # Errors
    /// It cannot be written as JSON.
    pub(crate) fn report(&self, status: &ComputeNodeStatus) -> Result<(), serde_json::Error> {
        let json = serde_json::to_vec(status)?;
        self.0.report.send_replace(Some(json));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uplink() -> Uplink {
        let join = r#"{"host": "cam-9", "operator": "edge.example:9000",
            "token": "secret", "authorities": "PEM"}"#;
        Uplink::of(&serde_json::from_str(join).unwrap())
    }

    #[tokio::test]
    async fn a_wish_keeps_the_way_to_the_operator_by_which_it_came() {
        let uplink = uplink();
        let mut objects = std::pin::pin!(uplink.objects());
        uplink.hear_wish(b"{");
        let wish = |name: &str| {
            let object = serde_json::json!({
                "apiVersion": "serving.lamina.dev/v1alpha1",
                "kind": "ComputeNode",
                "metadata": {"name": name, "uid": "u", "generation": 3},
                "spec": {"operator": "10.42.0.3:9000"},
            });
            object.to_string()
        };
        uplink.hear_wish(wish("cam-1").as_bytes());
        uplink.hear_wish(wish("cam-9").as_bytes());
        let object = objects.next().await.unwrap();
        assert_eq!(object.metadata.name.as_deref(), Some("cam-9"));
        assert_eq!(object.spec.operator, "edge.example:9000");
        assert_eq!(object.metadata.generation, Some(3));
    }

    #[tokio::test]
    async fn the_last_report_is_told_to_each_session() {
        let uplink = uplink();
        let mut first = uplink.reports();
        first.changed().await.unwrap();
        assert_eq!(*first.borrow_and_update(), None);
        uplink.report(&ComputeNodeStatus::default()).unwrap();
        first.changed().await.unwrap();
        assert!(first.borrow_and_update().is_some());
        let mut second = uplink.reports();
        second.changed().await.unwrap();
        assert!(second.borrow_and_update().is_some());
    }

    #[tokio::test]
    async fn whom_to_believe_is_never_nobody() {
        let uplink = uplink();
        uplink.hear_authorities(String::new());
        uplink.hear_authorities("PEM".to_owned());
        let mut bundles = std::pin::pin!(uplink.bundles());
        assert_eq!(bundles.next().await.as_deref(), Some("PEM"));
    }
}
