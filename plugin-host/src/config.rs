//! The configured plugins.

use crate::plugin::Plugin;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Longest name; with the prefix it fits `spec.strategy.name`.
const MAX_NAME: usize = 40;
/// Valid timeouts in seconds: a plan is needed within seconds.
const TIMEOUTS: std::ops::RangeInclusive<f64> = 0.05..=60.0;

/// One plugin, from the chart's `operator.plugins`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PluginConfig {
    /// The plugin's own name for its strategy: lower-case letters, digits and `-`. Users select it
    /// as `plugin/NAME`.
    pub name: String,
    /// `http://HOST:PORT` or `unix:/PATH`.
    pub address: String,
    /// Seconds that one question may take, 0.05 to 60.
    #[serde(default = "default_timeout")]
    pub timeout_seconds: f64,
}

const fn default_timeout() -> f64 {
    2.0
}

/// Why a list of plugins is invalid.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The list is not JSON of the right form.
    #[error("the list of plugins is not a JSON list of {{name, address, timeoutSeconds}}")]
    Form(#[source] serde_json::Error),
    /// A name that cannot be selected.
    #[error(
        "plugin name `{0}`: use 1 to 40 lower-case letters, digits and `-`, no `-` at either end"
    )]
    Name(String),
    /// Two plugins have the same name.
    #[error("two plugins are named `{0}`; give each its own name")]
    Twice(String),
    /// An address that cannot be connected to.
    #[error("plugin `{name}`: address `{address}` is not http://HOST:PORT or unix:/PATH")]
    Address {
        /// The plugin.
        name: String,
        /// The given address.
        address: String,
    },
    /// A timeout out of range.
    #[error("plugin `{name}`: timeoutSeconds is {seconds}; give 0.05 to 60")]
    Timeout {
        /// The plugin.
        name: String,
        /// The given timeout.
        seconds: f64,
    },
}

/// Every plugin by the name that selects it. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Plugins(BTreeMap<String, Arc<Plugin>>);

impl Plugins {
    /// The plugins of a JSON list of [`PluginConfig`]; none if empty.
    ///
    /// # Errors
    /// The first mistake.
    pub fn parse(json: &str) -> Result<Self, ConfigError> {
        if json.trim().is_empty() {
            return Ok(Self::default());
        }
        Self::new(serde_json::from_str(json).map_err(ConfigError::Form)?)
    }

    /// The plugins of a list. Does not connect yet.
    ///
    /// # Errors
    /// The first mistake.
    pub fn new(list: Vec<PluginConfig>) -> Result<Self, ConfigError> {
        let mut plugins = BTreeMap::new();
        for config in list {
            let plugin = checked(config)?;
            let strategy = plugin.strategy().to_owned();
            if plugins.contains_key(&strategy) {
                return Err(ConfigError::Twice(plugin.name().to_owned()));
            }
            plugins.insert(strategy, Arc::new(plugin));
        }
        Ok(Self(plugins))
    }

    /// The plugin that `spec.strategy.name` selects.
    pub fn get(&self, strategy: &str) -> Option<Arc<Plugin>> {
        self.0.get(strategy).cloned()
    }

    /// The strategy names of all plugins, `plugin/NAME`.
    pub fn strategies(&self) -> BTreeSet<String> {
        self.0.keys().cloned().collect()
    }
}

fn checked(config: PluginConfig) -> Result<Plugin, ConfigError> {
    let PluginConfig {
        name,
        address,
        timeout_seconds: seconds,
    } = config;
    if !is_name(&name) {
        return Err(ConfigError::Name(name));
    }
    if !TIMEOUTS.contains(&seconds) {
        return Err(ConfigError::Timeout { name, seconds });
    }
    let timeout = Duration::from_secs_f64(seconds);
    match Plugin::new(&name, &address, timeout) {
        Some(plugin) => Ok(plugin),
        None => Err(ConfigError::Address { name, address }),
    }
}

fn is_name(name: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    (1..=MAX_NAME).contains(&name.len())
        && name.chars().all(|c| plain(c) || c == '-')
        && name.starts_with(plain)
        && name.ends_with(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        Plugins::parse(json).unwrap_err().to_string()
    }

    #[test]
    fn a_plugin_is_selected_by_its_name_behind_the_prefix() {
        let plugins = Plugins::parse(
            r#"[{"name": "greedy", "address": "http://greedy:50051"},
                {"name": "mine", "address": "unix:/run/mine.sock", "timeoutSeconds": 0.5}]"#,
        )
        .unwrap();
        assert_eq!(
            plugins.strategies().into_iter().collect::<Vec<_>>(),
            ["plugin/greedy", "plugin/mine"]
        );
        let mine = plugins.get("plugin/mine").unwrap();
        assert_eq!(mine.timeout(), Duration::from_millis(500));
        assert!(plugins.get("mine").is_none());
        assert!(Plugins::parse(" ").unwrap().strategies().is_empty());
    }

    #[test]
    fn what_is_wrong_with_a_list_is_said() {
        assert!(refused("greedy").contains("JSON list"));
        assert!(refused(r#"[{"name": "a", "address": "http://a:1", "port": 1}]"#).contains("JSON"));
        assert!(refused(r#"[{"name": "A b", "address": "http://a:1"}]"#).contains("`A b`"));
        assert!(refused(r#"[{"name": "-", "address": "http://a:1"}]"#).contains("`-`"));
        for address in [
            "",
            "a:1",
            "https://a:1",
            "http://",
            "http://a",
            "unix:",
            "ftp://a:1",
        ] {
            let json = format!(r#"[{{"name": "a", "address": "{address}"}}]"#);
            assert_eq!(
                refused(&json),
                format!("plugin `a`: address `{address}` is not http://HOST:PORT or unix:/PATH")
            );
        }
        let twice =
            r#"[{"name": "a", "address": "http://a:1"}, {"name": "a", "address": "http://b:1"}]"#;
        assert!(refused(twice).contains("two plugins are named `a`"));
        let slow = r#"[{"name": "a", "address": "http://a:1", "timeoutSeconds": 600}]"#;
        assert!(refused(slow).contains("600; give 0.05 to 60"));
    }
}
