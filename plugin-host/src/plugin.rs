//! One plugin, and the strategy that replaces it when it fails.

use crate::ask::{Call, Heard};
use crate::error::{PluginError, Trouble, WorkError};
use crate::incumbent::Incumbent;
use crate::terms::{FALLBACK, MAX_QUESTION_BYTES, PREFIX};
use lamina_placement::{
    Certificate, Ctx, Parameters, Problem, Solution, SolveError, SolveOptions, Stats, Status,
    ValidProblem, solve_checked, strategy,
};
use lamina_proto::strategy::SolveRequest;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Endpoint;

/// Time reserved for that strategy, if available.
const RESERVE: Duration = Duration::from_secs(1);
/// Share of the time that a plugin gets: sending the answer takes time too.
const TIME_TO_COMPUTE: f64 = 0.9;

/// A strategy in a separate process. Each question opens a connection, so a plugin may come, go and
/// be replaced at any time.
#[derive(Debug)]
pub struct Plugin {
    name: String,
    strategy: String,
    address: String,
    endpoint: Endpoint,
    timeout: Duration,
}

/// A question to a plugin.
#[derive(Debug, Clone)]
pub struct Question {
    /// The problem.
    pub problem: Arc<Problem>,
    /// Parameters of the strategy.
    pub parameters: Parameters,
    /// Seed; the work limit applies only to the built-in strategy.
    pub options: SolveOptions,
}

/// A checked answer, of the plugin or its replacement.
#[derive(Debug)]
pub struct Solved {
    /// The answer with the checker's metrics. A plugin's answer is [`Status::Feasible`] without a
    /// bound: a bound can be refuted by looking at it, but not proved.
    pub solution: Solution,
    /// The bound that the plugin claims for it.
    pub claimed_lower_bound: Option<f64>,
    /// The plugin's fault, if any.
    pub trouble: Option<Trouble>,
}

impl Plugin {
    /// `None` if `address` is not a valid address.
    pub(crate) fn new(name: &str, address: &str, timeout: Duration) -> Option<Self> {
        Some(Self {
            name: name.to_owned(),
            strategy: format!("{PREFIX}{name}"),
            address: address.to_owned(),
            endpoint: endpoint(address)?,
            timeout,
        })
    }

    /// The plugin's own name for it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name that users select.
    pub fn strategy(&self) -> &str {
        &self.strategy
    }

    /// Time limit of one question, without the built-in strategy's.
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Asks the plugin, and [`FALLBACK`] if it gives no good answer. Ends at the
    /// deadline of `ctx`; dropping the future ends the call as well.
    ///
    /// # Errors
    /// The problem is invalid, or a solver panicked. A bad plugin is not an error, but
    /// in [`Solved::trouble`].
    pub async fn solve(&self, question: &Question, ctx: &Ctx) -> Result<Solved, WorkError> {
        ValidProblem::new(&question.problem).map_err(SolveError::Invalid)?;
        match self.ask(question, ctx).await {
            Ok(heard) => Ok(self.solved(heard)),
            Err(cause) => Ok(Solved {
                solution: fall_back(question, ctx).await?,
                claimed_lower_bound: None,
                trouble: Some(self.trouble(cause, true)),
            }),
        }
    }

    async fn ask(&self, question: &Question, ctx: &Ctx) -> Result<Heard, PluginError> {
        let limit = limit(self.timeout, ctx);
        let call = Call {
            endpoint: &self.endpoint,
            name: &self.name,
            problem: &question.problem,
            limit,
            ctx,
        };
        call.run(self.request(question, limit)?).await
    }

    fn request(&self, question: &Question, limit: Duration) -> Result<SolveRequest, PluginError> {
        // A valid problem has no number that JSON lacks.
        let problem_json = serde_json::to_string(&*question.problem)
            .map_err(|e| PluginError::Unable(format!("the problem cannot be written: {e}")))?;
        if problem_json.len() > MAX_QUESTION_BYTES {
            return Err(PluginError::TooLarge {
                bytes: problem_json.len(),
                limit: MAX_QUESTION_BYTES,
            });
        }
        let parameters = question.parameters.iter();
        Ok(SolveRequest {
            strategy: self.name.clone(),
            problem_json,
            parameters: parameters.map(|(k, v)| (k.clone(), text(v))).collect(),
            seed: question.options.seed,
            time_limit_seconds: limit.as_secs_f64() * TIME_TO_COMPUTE,
        })
    }

    fn solved(&self, heard: Heard) -> Solved {
        let Incumbent {
            placements,
            metrics,
            claimed_lower_bound,
        } = heard.incumbent;
        Solved {
            solution: Solution {
                strategy: self.strategy.clone(),
                placements,
                metrics: Some(metrics),
                certificate: Certificate {
                    status: Status::Feasible,
                    lower_bound: None,
                    gap: None,
                },
                stats: Stats {
                    stage: format!("answer {} of the plugin", heard.answers),
                    ..Stats::default()
                },
            },
            claimed_lower_bound,
            trouble: heard.trouble.map(|cause| self.trouble(cause, false)),
        }
    }

    fn trouble(&self, cause: PluginError, fell_back: bool) -> Trouble {
        Trouble {
            strategy: self.strategy.clone(),
            address: self.address.clone(),
            cause,
            fell_back,
        }
    }
}

/// As the user wrote it: texts without quotes.
fn text(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn endpoint(address: &str) -> Option<Endpoint> {
    let is_socket = address.strip_prefix("unix:").is_some_and(|path| {
        let path = path.strip_prefix("//").unwrap_or(path);
        path.starts_with('/')
    });
    let is_host = || {
        let host = address.strip_prefix("http://")?.trim_end_matches('/');
        let (name, port) = host.rsplit_once(':')?;
        (!name.is_empty()).then_some(())?;
        port.parse::<u16>().ok().filter(|p| *p > 0)
    };
    if !is_socket && is_host().is_none() {
        return None;
    }
    Endpoint::from_shared(address.to_owned()).ok()
}

/// Time for the plugin: its own timeout, leaving some for the built-in strategy.
fn limit(timeout: Duration, ctx: &Ctx) -> Duration {
    match ctx.remaining() {
        None => timeout,
        Some(left) => timeout.min(left.saturating_sub(RESERVE.min(left / 4))),
    }
}

async fn fall_back(question: &Question, ctx: &Ctx) -> Result<Solution, WorkError> {
    let (question, ctx) = (question.clone(), ctx.clone());
    let work = tokio::task::spawn_blocking(move || {
        let strategy = strategy(FALLBACK, &Parameters::new())?;
        solve_checked(
            &question.problem,
            strategy.as_ref(),
            &question.options,
            &ctx,
        )
    });
    Ok(work.await.map_err(WorkError::Broke)??)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn something_is_left_for_the_other_strategy() {
        let timeout = Duration::from_secs(2);
        assert_eq!(limit(timeout, &Ctx::unlimited()), timeout);
        let until = |seconds| Ctx::until(Instant::now() + Duration::from_secs(seconds));
        assert_eq!(limit(timeout, &until(60)), timeout);
        let short = limit(timeout, &until(2));
        assert!(short <= Duration::from_millis(1500), "{short:?}");
        let past = Ctx::until(Instant::now());
        assert_eq!(limit(timeout, &past), Duration::ZERO);
    }

    #[test]
    fn parameters_reach_the_plugin_as_they_were_written() {
        assert_eq!(text(&serde_json::json!("a b")), "a b");
        assert_eq!(text(&serde_json::json!(8)), "8");
        assert_eq!(text(&serde_json::json!(true)), "true");
    }
}
