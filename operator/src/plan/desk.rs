//! Questions that are under way, and the answers that came. Solving goes on beside
//! the loop: built-in strategies on a few threads, the most urgent question first and
//! each with a deadline of its own, namespaces in turn; plugins in calls of their own, so
//! that one that hangs delays its own model only.

use super::ask;
#[cfg(test)]
pub(crate) use super::ask::{ahead, solve};
use super::problem;
use crate::state::decision::{Ask, Question};
use crate::state::ids::PlacementKey;
use crate::state::reserved::Reserved;
use crate::state::snapshot::{Ahead, Answer, Need, QuestionView, Remark};
use crate::text::with_causes;
use lamina_crds::reasons;
use lamina_placement::{Ctx, SolveOptions};
use lamina_plugin_host::{Plugin, Plugins, Question as PluginQuestion, Solved, WorkError};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use waiting::Waiting;

mod waiting;

/// Time limit of a question to a built-in strategy.
const SOLVE_TIME: Duration = Duration::from_secs(3);
/// Time limit of a question ahead, with all its scenarios: urgent questions must not wait long
/// behind it.
const AHEAD_TIME: Duration = Duration::from_millis(500);
/// Time limit of the built-in strategy that replaces a plugin without a good answer.
const FALLBACK_TIME: Duration = Duration::from_secs(2);
/// Most threads that solve at once.
const MOST_THREADS: usize = 8;

/// Where questions go out and answers come in.
#[derive(Debug)]
pub(crate) struct Desk {
    plugins: Plugins,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    open: Mutex<Open>,
    /// There is work, or the desk is closing.
    work: Condvar,
    /// An awaited answer came.
    answered: Notify,
}

#[derive(Debug, Default)]
struct Open {
    questions: BTreeMap<PlacementKey, Asked>,
    /// Questions for threads.
    waiting: Waiting,
    asked: u64,
    is_closed: bool,
}

/// A question and who waits for its answer; both end together.
#[derive(Debug)]
struct Asked {
    number: u64,
    view: QuestionView,
    question: Arc<Question>,
    /// The call to a plugin.
    call: Option<AbortHandle>,
}

/// The outcome of a question.
enum Reply {
    Answer(Arc<Answer>),
    Ahead(Arc<Ahead>),
}

impl Drop for Asked {
    fn drop(&mut self) {
        if let Some(call) = &self.call {
            call.abort();
        }
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.work.notify_all();
    }
}

impl Desk {
    /// A desk with these `plugins`, and as many threads as there are processors to spare.
    pub(crate) fn new(plugins: Plugins) -> Self {
        let shared = Arc::<Shared>::default();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        for number in 0..processors.saturating_sub(1).clamp(1, MOST_THREADS) {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name(format!("solve-{number}"));
            if let Err(error) = thread.spawn(move || shared.solve()) {
                tracing::warn!(%error, "a thread for solving could not begin");
            }
        }
        Self { plugins, shared }
    }

    /// Every question, with its answer if it came.
    pub(crate) fn views(&self) -> BTreeMap<PlacementKey, QuestionView> {
        let open = self.shared.lock();
        let views = open.questions.iter();
        views
            .map(|(key, q)| (key.clone(), q.view.clone()))
            .collect()
    }

    /// Returns when an awaited answer has come since the last call. Answers to periodic questions
    /// are picked up by the next look, whenever that is: with hundreds of Placements the loop would
    /// never rest.
    pub(crate) async fn answered(&self) {
        self.shared.answered.notified().await;
    }

    /// Drops a question, and cancels its call if that is still running.
    pub(crate) fn forget(&self, key: &PlacementKey) {
        self.shared.lock().questions.remove(key);
    }

    /// Asks in the background. Replaces an earlier question with the same key.
    pub(crate) fn ask(&self, ask: Ask) {
        let view = QuestionView {
            about: ask.about,
            need: ask.need,
            answer: None,
            ahead: None,
        };
        let mut open = self.shared.lock();
        open.asked += 1;
        let number = open.asked;
        let call = match self.plugins.get(&view.about.strategy) {
            Some(plugin) => {
                let question = open.in_turn(&ask.key, &ask.question);
                Some(self.call(plugin, number, &ask.key, question))
            }
            None => {
                let (namespace, key) = (&ask.question.namespace, ask.key.clone());
                open.waiting.push(namespace, ask.need, number, key);
                self.shared.work.notify_one();
                None
            }
        };
        let asked = Asked {
            number,
            view,
            question: ask.question,
            call,
        };
        open.questions.insert(ask.key, asked);
    }

    fn call(
        &self,
        plugin: Arc<Plugin>,
        number: u64,
        key: &PlacementKey,
        question: Question,
    ) -> AbortHandle {
        let (shared, key) = (Arc::clone(&self.shared), key.clone());
        let question = Arc::new(question);
        let task = tokio::spawn(async move {
            let answer = by_plugin(&plugin, &key, question).await;
            shared.take(&key, number, Reply::Answer(Arc::new(answer)));
        });
        task.abort_handle()
    }
}

impl Open {
    /// The next question for a thread that is still wanted, with its number.
    fn next(&mut self) -> Option<(PlacementKey, u64, Question)> {
        let questions = &self.questions;
        let is_wanted = |key: &PlacementKey, number: u64| {
            let asked = questions.get(key);
            asked.is_some_and(|asked| asked.number == number)
        };
        let (key, number) = self.waiting.pop(is_wanted)?;
        let asked = self.questions.get(&key)?;
        let question = self.in_turn(&key, &asked.question);
        Some((key, number, question))
    }

    /// The question as it is when its turn comes: answers that came since it was asked,
    /// and that are not plans yet, take what they need first. Else all that were asked in
    /// one look would choose the same free hosts.
    fn in_turn(&self, key: &PlacementKey, question: &Question) -> Question {
        let mut reserved = Reserved::default();
        let others = self.questions.iter().filter(|(other, _)| *other != key);
        for asked in others.map(|(_, asked)| asked) {
            if let Some(answer) = &asked.view.answer
                && let Ok(solution) = &answer.solution
            {
                reserved.add(&asked.question, &answer.problem, solution);
            }
        }
        Question {
            reserved,
            ..question.clone()
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Solves questions until the desk closes.
    fn solve(&self) {
        while let Some((key, number, question)) = self.next() {
            let is_ahead = !question.supposed.is_empty();
            // A panic in a strategy costs this question's answer, not the thread.
            let solved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                if is_ahead {
                    let ctx = Ctx::until(Instant::now() + AHEAD_TIME);
                    Reply::Ahead(Arc::new(ask::ahead(&question, &ctx)))
                } else {
                    let ctx = Ctx::until(Instant::now() + SOLVE_TIME);
                    Reply::Answer(Arc::new(ask::solve(&question, &ctx)))
                }
            }));
            let reply = solved.unwrap_or_else(|_| {
                if is_ahead {
                    Reply::Ahead(Arc::default())
                } else {
                    Reply::Answer(Arc::new(broken(&question)))
                }
            });
            self.take(&key, number, reply);
        }
    }

    /// The next question; `None` once the desk is gone.
    fn next(&self) -> Option<(PlacementKey, u64, Question)> {
        let mut open = self.lock();
        loop {
            if open.is_closed {
                return None;
            }
            if let Some(next) = open.next() {
                return Some(next);
            }
            let waited = self.work.wait(open);
            open = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn take(&self, key: &PlacementKey, number: u64, reply: Reply) {
        let mut open = self.lock();
        let asked = open.questions.get_mut(key);
        if let Some(asked) = asked.filter(|q| q.number == number) {
            match reply {
                Reply::Answer(answer) => {
                    asked.view.answer = Some(answer);
                    if asked.view.need > Need::Period {
                        self.answered.notify_one();
                    }
                }
                // Nobody waits for it.
                Reply::Ahead(ahead) => asked.view.ahead = Some(ahead),
            }
        }
    }
}

/// The answer in place of one whose strategy panicked.
fn broken(question: &Question) -> Answer {
    let message = format!(
        "strategy {} broke off, which is a bug; please report it with the log",
        question.wish.strategy.name
    );
    Answer {
        seconds: 0.0,
        problem: Arc::default(),
        solution: Err((reasons::NO_FEASIBLE_PLACEMENT, message)),
        remark: None,
        standing: None,
    }
}

async fn by_plugin(plugin: &Plugin, key: &PlacementKey, question: Arc<Question>) -> Answer {
    let built = Arc::clone(&question);
    let built = tokio::task::spawn_blocking(move || Arc::new(problem::build(&built))).await;
    let Ok(problem) = built else {
        return broken(&question);
    };
    let asked = PluginQuestion {
        problem: Arc::clone(&problem),
        parameters: question.wish.strategy.parameters.clone(),
        options: SolveOptions::default(),
    };
    let began = Instant::now();
    let ctx = Ctx::until(began + plugin.timeout() + FALLBACK_TIME);
    let solved = match ask::pinned_to_nobody(&question) {
        None => plugin.solve(&asked, &ctx).await,
        Some(refusal) => {
            let after = Ctx::until(Instant::now() + FALLBACK_TIME);
            return ask::judged(&question, problem, Err(refusal), 0.0, None, &after);
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    if let Ok(Solved {
        trouble: Some(trouble),
        ..
    }) = &solved
    {
        tracing::warn!(placement = %key, seconds, "{trouble}");
    }
    let judged = tokio::task::spawn_blocking({
        let question = Arc::clone(&question);
        move || judge(&question, problem, solved, seconds)
    });
    judged.await.unwrap_or_else(|_| broken(&question))
}

fn judge(
    question: &Question,
    problem: Arc<lamina_placement::Problem>,
    solved: Result<Solved, WorkError>,
    seconds: f64,
) -> Answer {
    let ctx = Ctx::until(Instant::now() + FALLBACK_TIME);
    let (solution, remark) = match solved {
        Ok(solved) => {
            let remark = solved.trouble.map(|t| Remark {
                kind: t.cause.kind(),
                fell_back: t.fell_back,
                text: t.to_string(),
            });
            (Ok(solved.solution), remark)
        }
        Err(error) => {
            let refusal = (reasons::NO_FEASIBLE_PLACEMENT, with_causes(&error));
            (Err(refusal), None)
        }
    };
    ask::judged(question, problem, solution, seconds, remark, &ctx)
}

#[cfg(test)]
mod tests;
