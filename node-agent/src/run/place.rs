//! Which host this is, and where its spec comes from.

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
    /// How it joins, if it is not a Node.
    join: Option<JoinFile>,
}

/// The connection to the API server's objects.
#[derive(Clone)]
pub(super) enum Way {
    /// The API server itself.
    Api(Client),
    /// The operator's session.
    Session(Uplink),
}

impl Place {
    /// From `args`, and the join file if there is one. Blocks for a moment.
    ///
    /// # Errors
    /// Something is missing, or does not fit a host that is not a Node.
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

    /// Address for other agents at `port`, `10.0.0.7:8001`.
    pub(super) fn address(&self, port: u16) -> String {
        SocketAddr::new(self.ip, port).to_string()
    }

    /// Whether TLS is used: a host that is not a Node has only its certificate.
    pub(super) const fn tls(&self, args: &RunArgs) -> TlsMode {
        match self.join {
            None => args.tls,
            Some(_) => TlsMode::Required,
        }
    }

    /// The operator's address, if the user gives it.
    pub(super) fn operator(&self) -> Option<&str> {
        self.join.as_ref().map(|join| join.operator.as_str())
    }

    /// The token of its pod; a host that is not a Node has none.
    pub(super) fn token_file(&self, args: &RunArgs) -> Option<PathBuf> {
        self.join.is_none().then(|| args.token_file.clone())
    }

    /// The credentials for a certificate request.
    pub(super) fn shown(&self, args: &RunArgs) -> Shown {
        match &self.join {
            None => Shown::Pod(args.token_file.clone()),
            Some(join) => Shown::join(join),
        }
    }

    /// The connection to the API server's objects.
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
