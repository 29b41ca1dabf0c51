//! Questions to plugins that are under way, and the answers that came. Asking goes
//! on beside the loop, so that a plugin that hangs delays its own model only.

use super::decision::Ask;
use super::snapshot::{AnswerView, QuestionView, Remark};
use crate::text::with_causes;
use lamina_placement::{Ctx, SolveOptions};
use lamina_plugin_host::{Plugin, Plugins, Question, Solved, WorkError};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

/// Time for the built-in strategy, where a plugin gives no good answer.
const FALLBACK_TIME: Duration = Duration::from_secs(2);

/// Where questions go out and answers come in.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    plugins: Plugins,
    open: Arc<Mutex<Open>>,
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Open {
    questions: BTreeMap<String, Asked>,
    asked: u64,
}

/// A question and who waits for its answer; both end together.
#[derive(Debug)]
struct Asked {
    number: u64,
    view: QuestionView,
    task: AbortHandle,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Desk {
    /// A desk that asks `plugins`.
    pub(crate) fn new(plugins: Plugins) -> Self {
        Self {
            plugins,
            ..Self::default()
        }
    }

    /// Every question with its answer, where it came.
    pub(crate) fn views(&self) -> BTreeMap<String, QuestionView> {
        let open = lock(&self.open);
        let views = open.questions.iter();
        views
            .map(|(key, q)| (key.clone(), q.view.clone()))
            .collect()
    }

    /// Returns when an answer came since the last call.
    pub(crate) async fn answered(&self) {
        self.changed.notified().await;
    }

    /// Drops a question, and the call where it is still under way.
    pub(crate) fn forget(&self, key: &str) {
        lock(&self.open).questions.remove(key);
    }

    /// Asks in the background. A former question with the same key is dropped.
    pub(crate) fn ask(&self, ask: Ask) {
        let Some(plugin) = self.plugins.get(&ask.strategy) else {
            // Decided from a snapshot that named it: the list never changes.
            tracing::warn!(strategy = ask.strategy, "there is no such plugin");
            return;
        };
        let view = QuestionView {
            strategy: ask.strategy.clone(),
            generation: ask.generation,
            answer: None,
        };
        let key = ask.key.clone();
        let mut open = lock(&self.open);
        open.asked += 1;
        let number = open.asked;
        let (shared, changed) = (Arc::clone(&self.open), Arc::clone(&self.changed));
        let task = tokio::spawn(async move {
            let key = ask.key.clone();
            let answer = answer(&plugin, ask).await;
            let mut open = lock(&shared);
            if let Some(own) = open.questions.get_mut(&key).filter(|q| q.number == number) {
                own.view.answer = Some(answer);
                changed.notify_one();
            }
        });
        let task = task.abort_handle();
        open.questions.insert(key, Asked { number, view, task });
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(plugin: &Plugin, ask: Ask) -> AnswerView {
    let question = Question {
        problem: ask.problem,
        parameters: ask.parameters,
        options: SolveOptions::default(),
    };
    let began = Instant::now();
    let ctx = Ctx::until(began + plugin.timeout() + FALLBACK_TIME);
    let solved = plugin.solve(&question, &ctx).await;
    let seconds = began.elapsed().as_secs_f64();
    if let Ok(Solved {
        trouble: Some(trouble),
        ..
    }) = &solved
    {
        tracing::warn!(placement = ask.key, seconds, "{trouble}");
    }
    view(seconds, solved)
}

fn view(seconds: f64, solved: Result<Solved, WorkError>) -> AnswerView {
    match solved {
        Ok(solved) => AnswerView {
            seconds,
            solution: Ok(Arc::new(solved.solution)),
            remark: solved.trouble.map(|t| Remark {
                kind: t.cause.kind(),
                fell_back: t.fell_back,
                text: t.to_string(),
            }),
        },
        Err(error) => AnswerView {
            seconds,
            solution: Err(with_causes(&error)),
            remark: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controllers::testing::small_problem;
    use lamina_placement::Status;
    use lamina_plugin_host::PluginConfig;
    use tokio::net::TcpListener;

    const KEY: &str = "model-uid/cam-1";

    fn ask(strategy: &str) -> Ask {
        Ask {
            key: KEY.into(),
            strategy: strategy.into(),
            generation: 3,
            problem: Arc::new(small_problem()),
            parameters: BTreeMap::new(),
        }
    }

    fn desk(address: String, timeout_seconds: f64) -> Desk {
        let plugins = Plugins::new(vec![PluginConfig {
            name: "mine".into(),
            address,
            timeout_seconds,
        }]);
        Desk::new(plugins.unwrap())
    }

    #[tokio::test]
    async fn the_answer_in_a_plugins_place_wakes_the_loop() {
        // Bound and dropped: nothing listens on that port any more.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let desk = desk(address, 5.0);
        desk.ask(ask("plugin/mine"));
        assert_eq!(desk.views()[KEY].answer, None);
        desk.answered().await;
        let question = desk.views().remove(KEY).unwrap();
        assert_eq!(
            (question.strategy.as_str(), question.generation),
            ("plugin/mine", 3)
        );
        let answer = question.answer.unwrap();
        let solution = answer.solution.unwrap();
        assert_eq!(solution.strategy, "optimal");
        assert_eq!(solution.certificate.status, Status::Optimal);
        let remark = answer.remark.unwrap();
        assert_eq!((remark.kind, remark.fell_back), ("Unreachable", true));
        assert!(
            remark
                .text
                .starts_with("strategy plugin/mine fell back to optimal: ")
        );
        desk.forget(KEY);
        assert_eq!(desk.views(), BTreeMap::new());
    }

    #[tokio::test]
    async fn a_question_that_nobody_waits_for_any_more_is_hung_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let desk = desk(format!("http://{}", listener.local_addr().unwrap()), 60.0);
        desk.ask(ask("plugin/mine"));
        let (mut call, _) = listener.accept().await.unwrap();
        desk.forget(KEY);
        // Reads what the client sent, then the end of the connection.
        let mut sent = Vec::new();
        let end = tokio::io::AsyncReadExt::read_to_end(&mut call, &mut sent).await;
        assert!(end.is_ok_and(|bytes| bytes == sent.len()));
        assert_eq!(desk.views(), BTreeMap::new());
    }
}
