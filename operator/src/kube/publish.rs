//! Publishes Events outside the loop: no deployment waits for one.

use crate::kube::events::{self, Series};
use crate::state::notice::Notice;
use crate::text::with_causes;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// An Event that takes longer is dropped.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Time for a stopping process to publish the remaining Events.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Most Events in the queue; more than that would come from a fault.
const QUEUE: usize = 4096;

/// Publishes Events in the order in which they happened.
pub(crate) struct Publisher {
    notices: mpsc::Sender<(Notice, Timestamp)>,
    worker: JoinHandle<()>,
}

/// Why an Event was not published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("the API server refused or could not be reached")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

impl Publisher {
    /// `reporter` names this process in Events.
    pub(crate) fn new(client: Client, reporter: String) -> Self {
        let (notices, mut waiting) = mpsc::channel(QUEUE);
        let mut desk = Desk {
            client,
            reporter,
            series: Series::default(),
        };
        let worker = tokio::spawn(async move {
            // One after the other: a series must continue an Event that was written.
            while let Some((notice, at)) = waiting.recv().await {
                desk.tell(notice, at).await;
            }
        });
        Self { notices, worker }
    }

    /// Queues an Event. A lost one is logged: nothing depends on it.
    pub(crate) fn tell(&self, notice: Notice) {
        tracing::info!(
            kind = notice.regarding.kind,
            namespace = notice.regarding.id.namespace,
            name = notice.regarding.id.name,
            reason = notice.reason,
            "{}",
            notice.note
        );
        if let Err(error) = self.notices.try_send((notice, Timestamp::now())) {
            let (notice, _) = error.into_inner();
            tracing::warn!(
                reason = notice.reason,
                "too many Events wait: not published"
            );
        }
    }

    /// Publishes the queued Events, for a few seconds at most.
    pub(crate) async fn finish(mut self) {
        // Closing the queue ends the worker.
        drop(self.notices);
        match timeout(LAST_WORDS, &mut self.worker).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::error!(%error, "publishing Events panicked, which is a bug");
            }
            Err(_) => {
                self.worker.abort();
                tracing::warn!("some Events were not published before shutdown");
            }
        }
    }
}

/// Where Events are written.
struct Desk {
    client: Client,
    reporter: String,
    series: Series,
}

impl Desk {
    async fn tell(&mut self, notice: Notice, at: Timestamp) {
        let event = self.series.event(&notice, &self.reporter, at);
        let written = timeout(TIMEOUT, self.write(&notice, &event))
            .await
            .unwrap_or(Err(PublishError::Timeout));
        let Err(error) = written else { return };
        self.series.forget(&notice);
        tracing::warn!(
            reason = notice.reason,
            error = with_causes(&error),
            "event could not be published"
        );
    }

    async fn write(&self, notice: &Notice, event: &Event) -> Result<(), PublishError> {
        let namespace = events::namespace(&notice.regarding);
        let api = Api::<Event>::namespaced(self.client.clone(), namespace);
        if event.series.is_some() {
            let name = event.metadata.name.as_deref().unwrap_or_default();
            let patch = Patch::Merge(json!({ "series": event.series }));
            api.patch(name, &PatchParams::default(), &patch).await?;
        } else {
            api.create(&PostParams::default(), event).await?;
        }
        Ok(())
    }
}
