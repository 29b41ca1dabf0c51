//! Questions in progress and their answers. Solving runs beside the loop: built-in strategies on a
//! few threads, the most urgent question first and each with its own deadline; plugins in separate
//! calls, so that one that hangs delays only its own models.

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
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use tokio::task::AbortHandle;

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
    /// Numbers of questions for threads, the most urgent and then the oldest first.
    queue: BinaryHeap<(Need, Reverse<u64>, PlacementKey)>,
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
                open.queue
                    .push((ask.need, Reverse(number), ask.key.clone()));
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
    /// The question, updated when its turn comes: earlier answers that are not plans yet reserve
    /// their resources first. Otherwise all questions of one look would choose the same free hosts.
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

    /// The most urgent question that is still wanted; `None` once the desk closes.
    fn next(&self) -> Option<(PlacementKey, u64, Question)> {
        let mut open = self.lock();
        loop {
            if open.is_closed {
                return None;
            }
            while let Some((_, Reverse(number), key)) = open.queue.pop() {
                let asked = open.questions.get(&key).filter(|q| q.number == number);
                if let Some(asked) = asked {
                    let question = open.in_turn(&key, &asked.question);
                    return Some((key, number, question));
                }
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
