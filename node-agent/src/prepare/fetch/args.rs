//! Command-line options for sources.

use super::addresses::AddressRules;
use clap::Args;
use ipnet::IpNet;
use lamina_crds::quantity::parse_bytes;
use std::path::PathBuf;

/// Where models may come from, and how.
#[derive(Debug, Clone, Args)]
pub struct SourceArgs {
    /// Networks in which sources are always allowed, such as 127.0.0.0/8. Otherwise loopback,
    /// link-local and similar addresses are refused.
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub source_allow: Vec<IpNet>,
    /// Also refuse sources at private addresses (10.0.0.0/8, fc00::/7, …).
    #[arg(long)]
    pub source_deny_private: bool,
    /// Largest source file, such as 2Gi. In any case a file must fit the cache folder and
    /// the disk.
    #[arg(long, default_value = "8Gi", value_parser = parse_bytes, value_name = "BYTES")]
    pub source_size_limit: u64,
    /// Time limit for fetching a source, in seconds.
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub source_timeout_seconds: u64,
    /// PEM certificates of additional authorities to trust for sources' servers.
    #[arg(long, value_name = "FILE")]
    pub source_ca_file: Option<PathBuf>,
    /// Fetch sources through the proxy in HTTP_PROXY and HTTPS_PROXY, which then decides
    /// which addresses are reachable.
    #[arg(long)]
    pub source_proxy: bool,
    /// Registries that are contacted over http, `HOST:PORT`.
    #[arg(long, value_name = "REGISTRY", value_delimiter = ',')]
    pub source_plain_registry: Vec<String>,
    /// Server for `hf://`.
    #[arg(long, default_value = HUB, value_name = "URL")]
    pub source_hub: String,
    /// Folder for `file:///PATH`; without it there is no such source.
    #[arg(long, value_name = "DIR")]
    pub source_files: Option<PathBuf>,
    /// Folder in which the volume of `pvc://CLAIM/PATH` is mounted as CLAIM; without it
    /// there is no such source.
    #[arg(long, value_name = "DIR")]
    pub source_claims: Option<PathBuf>,
}

const HUB: &str = "https://huggingface.co";

impl Default for SourceArgs {
    fn default() -> Self {
        Self {
            source_allow: Vec::new(),
            source_deny_private: false,
            source_size_limit: 8 << 30,
            source_timeout_seconds: 3600,
            source_ca_file: None,
            source_proxy: false,
            source_plain_registry: Vec::new(),
            source_hub: HUB.to_owned(),
            source_files: None,
            source_claims: None,
        }
    }
}

impl SourceArgs {
    pub(super) fn rules(&self) -> AddressRules {
        AddressRules {
            allow: self.source_allow.clone(),
            deny_private: self.source_deny_private,
        }
    }
}
