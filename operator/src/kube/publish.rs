//! Publishing Events beside the looks: no deploy step waits for one.

use crate::kube::events::{self, Series};
use crate::state::notice::Notice;
use crate::text::with_causes;
use futures::StreamExt as _;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// An Event that takes longer is given up.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What a stopping process spends on what is still to be told.
const LAST_WORDS: Duration = Duration::from_secs(3);
/// Events published at once: the API server has other work.
const CONCURRENCY: usize = 2;
/// Events that wait at most; more than that come from nothing that people read.
const QUEUE: usize = 4096;

/// Tells people what happened, in the order in which it did.
pub(crate) struct Publisher {
    notices: mpsc::Sender<(Notice, Timestamp)>,
    worker: JoinHandle<()>,
    is_stopping: CancellationToken,
}

/// Why an Event was not published.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error("the API server refused or could not be asked")]
    Api(#[from] kube::Error),
    #[error("the API server did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

impl Publisher {
    /// `reporter` names this process in Events.
    pub(crate) fn new(client: Client, reporter: String) -> Self {
        let (notices, mut waiting) = mpsc::channel(QUEUE);
        let desk = Desk {
            client,
            reporter,
            series: Mutex::default(),
        };
        let is_stopping = CancellationToken::new();
        let stopping = is_stopping.clone();
        let worker = tokio::spawn(async move {
            let waiting = futures::stream::poll_fn(move |context| waiting.poll_recv(context));
            let all =
                waiting.for_each_concurrent(CONCURRENCY, |(notice, at)| desk.tell(notice, at));
            let out_of_time = async {
                stopping.cancelled().await;
                tokio::time::sleep(LAST_WORDS).await;
            };
            tokio::select! {
                () = all => {}
                () = out_of_time => tracing::warn!("some Events were not published before the end"),
            }
        });
        Self {
            notices,
            worker,
            is_stopping,
        }
    }

    /// Puts an Event in the queue. One that is lost is logged: nothing depends on it.
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

    /// Publishes what waits, for a few seconds at most.
    pub(crate) async fn finish(self) {
        drop(self.notices);
        self.is_stopping.cancel();
        if let Err(error) = self.worker.await {
            tracing::error!(%error, "publishing Events broke off, which is a bug");
        }
    }
}

/// Where Events are written.
struct Desk {
    client: Client,
    reporter: String,
    series: Mutex<Series>,
}

impl Desk {
    async fn tell(&self, notice: Notice, at: Timestamp) {
        let event = self.series().event(&notice, &self.reporter, at);
        let written = tokio::time::timeout(TIMEOUT, self.write(&notice, &event))
            .await
            .unwrap_or(Err(PublishError::Timeout));
        let Err(error) = written else { return };
        self.series().forget(&notice);
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

    fn series(&self) -> MutexGuard<'_, Series> {
        self.series.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
