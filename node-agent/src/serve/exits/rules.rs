//! A request's rules at exits: from the model's file, from its DnnModel and from its client;
//! later ones take precedence.

use lamina_crds::compute_node::{self as told, Exits};
use lamina_crds::dnn_model::{EarlyExits, ExitMode, WhenCutOff};
use lamina_proto::hop::{ExitCriterion, ExitRule, ExitRules};
use lamina_proto::inference::InferParameter;
use lamina_proto::inference::infer_parameter::ParameterChoice;
use std::collections::HashMap;

const MIN_CONFIDENCE: &str = "lamina_min_confidence";
const FORCE_EXIT: &str = "lamina_force_exit";
const MAX_EXIT: &str = "lamina_max_exit";

/// A client's parameters for exits.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Asked {
    min_confidence: Option<f64>,
    force: Option<String>,
    last: Option<String>,
}

/// A client names something that the model does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub(crate) enum AskedError {
    #[error("`{parameter}` must be {expected}")]
    Parameter {
        parameter: &'static str,
        expected: &'static str,
    },
    #[error("`{FORCE_EXIT}` and `{MAX_EXIT}` exclude each other; send one of them")]
    Both,
    #[error("`{parameter}` is sent, but the model has no early exits")]
    NoExits { parameter: &'static str },
    #[error("`{parameter}` names `{name}`; the model's exits are {known}")]
    Unknown {
        parameter: &'static str,
        name: String,
        known: String,
    },
    #[error(
        "the model's exits go by entropy, for which `{MIN_CONFIDENCE}` says nothing; leave it out"
    )]
    Entropy,
    #[error("with `{parameter}` a request has one answer; ask for the output `{answer}` alone")]
    Outputs {
        parameter: &'static str,
        answer: String,
    },
}

impl Asked {
    /// Reads `parameters`.
    ///
    /// # Errors
    /// One is not a number or not a name.
    pub(crate) fn of(parameters: &HashMap<String, InferParameter>) -> Result<Self, AskedError> {
        let choice = |key| {
            parameters
                .get(key)
                .and_then(|p| p.parameter_choice.as_ref())
        };
        let name = |parameter| match choice(parameter) {
            None => Ok(None),
            Some(ParameterChoice::StringParam(name)) => Ok(Some(name.clone())),
            Some(_) => Err(AskedError::Parameter {
                parameter,
                expected: "the name of an exit",
            }),
        };
        let min_confidence = match choice(MIN_CONFIDENCE) {
            None => None,
            Some(ParameterChoice::DoubleParam(number)) if (0.0..=1.0).contains(number) => {
                Some(*number)
            }
            Some(ParameterChoice::Int64Param(0)) => Some(0.0),
            Some(ParameterChoice::Int64Param(1)) => Some(1.0),
            Some(_) => {
                return Err(AskedError::Parameter {
                    parameter: MIN_CONFIDENCE,
                    expected: "a number from 0 to 1",
                });
            }
        };
        let asked = Self {
            min_confidence,
            force: name(FORCE_EXIT)?,
            last: name(MAX_EXIT)?,
        };
        if asked.force.is_some() && asked.last.is_some() {
            return Err(AskedError::Both);
        }
        Ok(asked)
    }

    /// One of the parameters, if there was any.
    fn parameter(&self) -> Option<&'static str> {
        let given = [
            (self.min_confidence.is_some(), MIN_CONFIDENCE),
            (self.force.is_some(), FORCE_EXIT),
            (self.last.is_some(), MAX_EXIT),
        ];
        given.into_iter().find_map(|(is, name)| is.then_some(name))
    }
}

/// What happens to a request for the outputs `wanted` (all if empty): the rules, with
/// the output of its one answer. `None` if it runs to the end and all outputs are
/// returned.
///
/// # Errors
/// The client names something that does not exist.
pub(crate) fn wish(
    exits: Option<&Exits>,
    early: Option<&EarlyExits>,
    asked: &Asked,
    wanted: &[&str],
) -> Result<Option<(ExitRules, String)>, AskedError> {
    let parameter = asked.parameter();
    let Some((exits, end)) = exits.and_then(|e| Some((e, e.exits.last()?))) else {
        return parameter.map_or(Ok(None), |parameter| Err(AskedError::NoExits { parameter }));
    };
    if wanted.iter().any(|name| *name != end.output) {
        return parameter.map_or(Ok(None), |parameter| {
            let answer = end.output.clone();
            Err(AskedError::Outputs { parameter, answer })
        });
    }
    let is_off = early.is_some_and(|e| e.mode == ExitMode::All);
    if is_off && parameter.is_none() {
        return Ok(None);
    }
    let rules = rules(exits, early, asked)?;
    let last = rules.exits.len() - 1;
    if parameter.is_none() && rules.exits[..last].iter().all(|e| e.threshold.is_none()) {
        return Ok(None);
    }
    Ok(Some((rules, end.output.clone())))
}

fn rules(
    exits: &Exits,
    early: Option<&EarlyExits>,
    asked: &Asked,
) -> Result<ExitRules, AskedError> {
    let criterion = match exits.criterion {
        told::ExitCriterion::Confidence => ExitCriterion::Confidence,
        told::ExitCriterion::Entropy => ExitCriterion::Entropy,
    };
    if asked.min_confidence.is_some() && criterion == ExitCriterion::Entropy {
        return Err(AskedError::Entropy);
    }
    let place = |parameter, name: &Option<String>| match name {
        None => Ok(None),
        Some(name) => {
            let found = exits.exits.iter().position(|e| e.name == *name);
            let known = || exits.exits.iter().map(|e| e.name.as_str());
            let unknown = || AskedError::Unknown {
                parameter,
                name: name.chars().take(64).collect(),
                known: known().collect::<Vec<_>>().join(", "),
            };
            found.map(Some).ok_or_else(unknown)
        }
    };
    let (force, last) = (
        place(FORCE_EXIT, &asked.force)?,
        place(MAX_EXIT, &asked.last)?,
    );
    let all_leave = Some(match criterion {
        ExitCriterion::Confidence => 0.0,
        ExitCriterion::Entropy => 1.0,
    });
    let threshold = |i: usize, exit: &told::Exit| {
        let own = early.and_then(|e| e.thresholds.get(&exit.name)).copied();
        let usual = asked.min_confidence.or(own).or(exit.threshold);
        match (force, last) {
            (Some(forced), _) => all_leave.filter(|_| i == forced),
            (_, Some(last)) if i >= last => all_leave,
            _ => usual,
        }
    };
    let exit = |(i, exit): (usize, &told::Exit)| ExitRule {
        output: exit.output.clone(),
        temperature: exit.temperature,
        threshold: threshold(i, exit),
    };
    Ok(ExitRules {
        exits: exits.exits.iter().enumerate().map(exit).collect(),
        criterion: criterion.into(),
        answer_when_cut_off: early.is_some_and(|e| e.when_cut_off == WhenCutOff::Answer),
    })
}

/// Consistent rules.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Rules {
    pub(super) criterion: ExitCriterion,
    pub(super) exits: Vec<ExitRule>,
    /// A row that is not confident leaves at the last exit met if the next host is away.
    pub(crate) answers_when_cut_off: bool,
}

/// Invalid rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub(crate) enum RulesError {
    #[error("unknown criterion {0}")]
    Criterion(i32),
    #[error("there are no exits")]
    None,
    #[error("exit `{0}` has a temperature or a threshold that is out of bounds")]
    Bounds(String),
}

impl Rules {
    /// The rules of a request from another host.
    ///
    /// # Errors
    /// They are inconsistent.
    pub(crate) fn read(wire: &ExitRules) -> Result<Self, RulesError> {
        let criterion = ExitCriterion::try_from(wire.criterion);
        let is_good = |exit: &&ExitRule| {
            let threshold = exit.threshold.unwrap_or(0.0);
            exit.temperature.is_finite()
                && exit.temperature > 0.0
                && (0.0..=1.0).contains(&threshold)
        };
        if let Some(bad) = wire.exits.iter().find(|exit| !is_good(exit)) {
            return Err(RulesError::Bounds(bad.output.chars().take(64).collect()));
        }
        if wire.exits.is_empty() {
            return Err(RulesError::None);
        }
        Ok(Self {
            criterion: criterion.map_err(|_| RulesError::Criterion(wire.criterion))?,
            exits: wire.exits.clone(),
            answers_when_cut_off: wire.answer_when_cut_off,
        })
    }

    /// The exits in the order in which a request meets them.
    pub(crate) fn exits(&self) -> &[ExitRule] {
        &self.exits
    }

    /// Name of the output that has every answer.
    pub(crate) fn answer(&self) -> &str {
        self.exits.last().map_or("", |exit| exit.output.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exits() -> Exits {
        let exit = |name: &str, threshold| told::Exit {
            name: name.into(),
            output: format!("{name}_logits"),
            temperature: 1.0,
            threshold,
        };
        Exits {
            criterion: told::ExitCriterion::Confidence,
            exits: vec![
                exit("first", Some(0.9)),
                exit("second", None),
                exit("end", None),
            ],
        }
    }

    fn asked(parameters: &[(&str, ParameterChoice)]) -> Result<Asked, AskedError> {
        let parameters = parameters.iter().map(|(key, choice)| {
            let parameter_choice = Some(choice.clone());
            ((*key).to_owned(), InferParameter { parameter_choice })
        });
        Asked::of(&parameters.collect())
    }

    fn text(name: &str) -> ParameterChoice {
        ParameterChoice::StringParam(name.into())
    }

    fn thresholds(early: Option<&EarlyExits>, asked: &Asked) -> Option<Vec<Option<f64>>> {
        let rules = wish(Some(&exits()), early, asked, &[]).unwrap()?.0;
        Rules::read(&rules).unwrap();
        Some(rules.exits.iter().map(|e| e.threshold).collect())
    }

    #[test]
    fn the_client_is_heard_before_the_spec_and_the_spec_before_the_file() {
        let nothing = Asked::default();
        let of_file = vec![Some(0.9), None, None];
        assert_eq!(thresholds(None, &nothing), Some(of_file));
        let early = EarlyExits {
            thresholds: [("second".to_owned(), 0.6)].into(),
            ..EarlyExits::default()
        };
        let of_spec = vec![Some(0.9), Some(0.6), None];
        assert_eq!(thresholds(Some(&early), &nothing), Some(of_spec));
        let surer = asked(&[(MIN_CONFIDENCE, ParameterChoice::DoubleParam(0.7))]).unwrap();
        assert_eq!(thresholds(Some(&early), &surer), Some(vec![Some(0.7); 3]));
        let forced = asked(&[(FORCE_EXIT, text("second"))]).unwrap();
        let of_forced = vec![None, Some(0.0), None];
        assert_eq!(thresholds(None, &forced), Some(of_forced));
        let last = asked(&[(MAX_EXIT, text("second"))]).unwrap();
        let of_last = vec![Some(0.9), Some(0.0), Some(0.0)];
        assert_eq!(thresholds(None, &last), Some(of_last));
        let all = EarlyExits {
            mode: ExitMode::All,
            ..EarlyExits::default()
        };
        assert_eq!(thresholds(Some(&all), &nothing), None);
        assert!(thresholds(Some(&all), &forced).is_some());
    }

    #[test]
    fn who_wants_every_exit_gets_every_exit() {
        let nothing = Asked::default();
        let outputs = |wanted: &[&str]| wish(Some(&exits()), None, &nothing, wanted).unwrap();
        assert!(outputs(&["first_logits", "end_logits"]).is_none());
        assert_eq!(outputs(&["end_logits"]).unwrap().1, "end_logits");
        let forced = asked(&[(FORCE_EXIT, text("first"))]).unwrap();
        let refused = wish(Some(&exits()), None, &forced, &["first_logits"]).unwrap_err();
        assert!(
            refused.to_string().contains("`end_logits` alone"),
            "{refused}"
        );
    }

    #[test]
    fn what_there_is_not_is_refused_by_name() {
        let refused = |exits: Option<&Exits>, parameters: &[(&str, ParameterChoice)]| {
            let asked = asked(parameters);
            let wished = asked.and_then(|asked| wish(exits, None, &asked, &[]));
            wished.unwrap_err().to_string()
        };
        let all = exits();
        let unknown = refused(Some(&all), &[(FORCE_EXIT, text("third"))]);
        assert!(unknown.contains("first, second, end"), "{unknown}");
        let none = refused(None, &[(MAX_EXIT, text("first"))]);
        assert!(none.contains("no early exits"), "{none}");
        let number = [(MIN_CONFIDENCE, ParameterChoice::DoubleParam(1.5))];
        assert!(refused(Some(&all), &number).contains("from 0 to 1"));
        let both = [(MAX_EXIT, text("first")), (FORCE_EXIT, text("first"))];
        assert!(refused(Some(&all), &both).contains("exclude"));
        let entropy = Exits {
            criterion: told::ExitCriterion::Entropy,
            ..all
        };
        let sure = [(MIN_CONFIDENCE, ParameterChoice::Int64Param(1))];
        assert!(refused(Some(&entropy), &sure).contains("entropy"));
    }

    #[test]
    fn rules_out_of_bounds_are_refused() {
        let good = wish(Some(&exits()), None, &Asked::default(), &[]);
        let good = good.unwrap().unwrap().0;
        let read = |change: fn(&mut ExitRules)| {
            let mut rules = good.clone();
            change(&mut rules);
            Rules::read(&rules)
        };
        assert!(read(|_| {}).is_ok());
        assert_eq!(read(|r| r.exits.clear()), Err(RulesError::None));
        assert_eq!(read(|r| r.criterion = 7), Err(RulesError::Criterion(7)));
        for (temperature, threshold) in [(0.0, 0.5), (f64::NAN, 0.5), (1.0, 1.5), (1.0, f64::NAN)] {
            let mut rules = good.clone();
            rules.exits[0].temperature = temperature;
            rules.exits[0].threshold = Some(threshold);
            let bounds = RulesError::Bounds("first_logits".into());
            assert_eq!(Rules::read(&rules), Err(bounds));
        }
    }
}
