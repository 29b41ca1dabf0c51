//! An instance by name, so that a child process can draw it again.

use crate::profile::Profile;
use crate::worlds::Regime;
use crate::{published, worlds};
use anyhow::{Context, Result, bail, ensure};
use lamina_placement::Problem;
use std::fmt;
use std::str::FromStr;

/// `SCENARIO/PROFILE/NODES/SEED`, such as `tight/googlenet_fine/20/3`; `joint` has the number of
/// networks in place of the profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    pub scenario: Scenario,
    pub profile: String,
    pub nodes: usize,
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scenario {
    Published,
    Real,
    Tight,
    Packed,
    Joint,
}

const SCENARIOS: [(&str, Scenario); 5] = [
    ("published", Scenario::Published),
    ("real", Scenario::Real),
    ("tight", Scenario::Tight),
    ("packed", Scenario::Packed),
    ("joint", Scenario::Joint),
];

impl Instance {
    /// The problem of this name.
    pub(crate) fn problem(&self) -> Result<Problem> {
        let regime = match self.scenario {
            Scenario::Joint => {
                let networks = self
                    .profile
                    .parse()
                    .context("a joint instance names a number")?;
                return worlds::joint(networks, self.nodes, self.seed);
            }
            Scenario::Published => {
                let profile = Profile::named(&self.profile)?;
                return Ok(published::problem(&profile, self.nodes, self.seed));
            }
            Scenario::Real => Regime::Real,
            Scenario::Tight => Regime::Tight,
            Scenario::Packed => Regime::Packed,
        };
        let profile = Profile::named(&self.profile)?;
        Ok(worlds::alone(&profile, self.nodes, regime, self.seed))
    }

    /// A file name for it.
    pub(crate) fn file_name(&self) -> String {
        format!("{}.json", self.to_string().replace('/', "-"))
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = SCENARIOS.iter().find(|(_, s)| *s == self.scenario);
        let scenario = named.map_or("", |(name, _)| name);
        write!(
            f,
            "{scenario}/{}/{}/{}",
            self.profile, self.nodes, self.seed
        )
    }
}

impl FromStr for Instance {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let [scenario, profile, nodes, seed] = parts[..] else {
            bail!("`{text}` is not SCENARIO/PROFILE/NODES/SEED");
        };
        let known = SCENARIOS.iter().find(|(name, _)| *name == scenario);
        let (_, scenario) = known.with_context(|| {
            let names = SCENARIOS.map(|(name, _)| name).join(", ");
            format!("unknown scenario `{scenario}`; use one of: {names}")
        })?;
        let nodes = nodes.parse().context("nodes must be a number")?;
        ensure!(
            nodes >= 3,
            "there must be at least 3 nodes, one of each tier"
        );
        Ok(Self {
            scenario: *scenario,
            profile: profile.to_owned(),
            nodes,
            seed: seed.parse().context("the seed must be a number")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_placement::validate;

    #[test]
    fn every_scenario_is_valid_and_the_same_each_time() {
        for text in [
            "published/googlenet_units/9/1",
            "real/mobilenet_v2_coarse/12/2",
            "tight/googlenet_coarse/10/3",
            "packed/synth7/10/4",
            "joint/3/12/5",
        ] {
            let instance: Instance = text.parse().unwrap();
            assert_eq!(instance.to_string(), text);
            let problem = instance.problem().unwrap();
            validate(&problem).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(problem, instance.problem().unwrap(), "{text}");
            let other = Instance {
                seed: 77,
                ..instance
            };
            assert_ne!(problem, other.problem().unwrap(), "{text}");
        }
    }

    #[test]
    fn a_wrong_name_says_what_would_be_right() {
        let error = "loose/googlenet_fine/9/1".parse::<Instance>().unwrap_err();
        assert!(error.to_string().contains("published, real, tight"));
        assert!("tight/googlenet_fine/2/1".parse::<Instance>().is_err());
    }
}
