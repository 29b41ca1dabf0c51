//! Which host this is, and how it hears what it is to do.

use super::args::RunArgs;
use crate::identity::{Files, Shown};
use crate::net::TlsMode;
use crate::serve::access::AuthMode;
use crate::uplink::{JoinFile, Uplink};
use anyhow::{Context as _, Result, ensure};
use kube::Client;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// A host.
pub(super) struct Place {
    /// Its name.
    pub(super) node: String,
    /// Address at which others reach it.
    pub(super) ip: IpAddr,
    /// How it joins, where it is no Node.
    join: Option<JoinFile>,
}

/// The way to what the API server holds.
#[derive(Clone)]
pub(super) enum Way {
    /// To the API server itself.
    Api(Client),
    /// By the operator's session.
    Session(Uplink),
}

impl Place {
    /// As `args` say, and the file by which it joins, where there is one. Blocks for a moment.
    ///
    /// # Errors
    /// Something is missing, or does not fit a host that is no Node.
    pub(super) fn of(args: &RunArgs) -> Result<Self> {
        let Some(path) = &args.join else {
            let node = args.node_name.clone().context("--node-name is missing")?;
            let ip = args.pod_ip.context("--pod-ip is missing")?;
            let join = None;
            return Ok(Self { node, ip, join });
        };
        let join = JoinFile::read(path).context("--join cannot be used")?;
        ensure!(
            args.auth != AuthMode::Token,
            "--auth=token asks the API server about each client, to which a host that is no Node has no way: take --auth=api-key"
        );
        let ip = match args.pod_ip {
            Some(ip) => ip,
            None => join.own_address()?,
        };
        Files::in_dir(&args.cache_dir)
            .begin_join(&join.authorization(), &join.authorities)
            .context("the cache folder cannot be used")?;
        Ok(Self {
            node: join.host.clone(),
            ip: ip.to_canonical(),
            join: Some(join),
        })
    }

    /// Where other agents reach its `port`, `10.0.0.7:8001`.
    pub(super) fn address(&self, port: u16) -> String {
        SocketAddr::new(self.ip, port).to_string()
    }

    /// Whether TLS is spoken: a host that is no Node is known by its certificate alone.
    pub(super) const fn tls(&self, args: &RunArgs) -> TlsMode {
        match self.join {
            None => args.tls,
            Some(_) => TlsMode::Required,
        }
    }

    /// Where the operator listens, if the host is told that by its user.
    pub(super) fn operator(&self) -> Option<&str> {
        self.join.as_ref().map(|join| join.operator.as_str())
    }

    /// The token of its pod; a host that is no Node has none.
    pub(super) fn token_file(&self, args: &RunArgs) -> Option<PathBuf> {
        self.join.is_none().then(|| args.token_file.clone())
    }

    /// What it shows to be given a certificate.
    pub(super) fn shown(&self, args: &RunArgs) -> Shown {
        match &self.join {
            None => Shown::Pod(args.token_file.clone()),
            Some(join) => Shown::join(join),
        }
    }

    /// The way to what the API server holds.
    ///
    /// # Errors
    /// There is none.
    pub(super) async fn way(&self) -> Result<Way> {
        if let Some(join) = &self.join {
            return Ok(Way::Session(Uplink::of(join)));
        }
        let client = Client::try_default().await;
        let client =
            client.context("no access to the Kubernetes API: run in a pod, or set KUBECONFIG")?;
        Ok(Way::Api(client))
    }
}
