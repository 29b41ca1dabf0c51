//! etcd and an API server without hosts and controllers, for measurements at sizes beyond any lab.

use crate::control_plane::ControlPlane;
use crate::index::IndexLock;
use crate::lab::{LabError, tool};
use crate::tools::Tools;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Logs every write with its content, but no reads and watches.
const AUDIT_POLICY: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
  - level: Request
    verbs: [create, update, patch, delete]
    users: ["system:serviceaccount:lamina-system:lamina-operator"]
    resources:
      - group: serving.lamina.dev
      - group: events.k8s.io
  - level: None
"#;

/// A running API server with its etcd. Dropping it kills both.
pub struct ApiServer {
    plane: ControlPlane,
    tools: Tools,
    folder: PathBuf,
    address: Ipv4Addr,
    _index: IndexLock,
}

impl ApiServer {
    /// Starts both on a loopback address of their own; all files go into `folder`.
    ///
    /// # Errors
    /// A program is missing, or does not become ready.
    pub async fn start(folder: &Path) -> Result<Self, LabError> {
        let failed = |source| LabError::Write {
            path: folder.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let policy = folder.join("audit-policy.yaml");
        std::fs::write(&policy, AUDIT_POLICY).map_err(failed)?;
        let index = IndexLock::first_free()?;
        let tools = Tools::from_environment();
        let address = Ipv4Addr::new(127, 77, index.index(), 1);
        let arguments = vec![
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", audit_log(folder).display()),
            // Endpoints may not have loopback addresses.
            "--endpoint-reconciler-type=none".to_owned(),
        ];
        let (number, groups) = (index.index(), &[]);
        let plane =
            ControlPlane::start_api_server(&tools, folder, number, address, groups, arguments);
        Ok(Self {
            plane: plane.await?,
            tools,
            folder: folder.to_owned(),
            address,
            _index: index,
        })
    }

    /// A client with all rights.
    pub fn client(&self) -> kube::Client {
        self.plane.client()
    }

    /// The kubeconfig of a user with all rights.
    pub fn kubeconfig(&self) -> &Path {
        self.plane.kubeconfig()
    }

    /// A loopback address of this API server, for programs beside it.
    pub const fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// Every write of the operator with its content, one JSON object a line.
    pub fn audit_log(&self) -> PathBuf {
        audit_log(&self.folder)
    }

    /// The API server's process; `None` if it has ended.
    pub fn process(&self) -> Option<u32> {
        self.plane.process("kube-apiserver")
    }

    /// What `program` of the lab's tools prints, given `input`.
    ///
    /// # Errors
    /// It cannot be run, or ends with an error.
    pub async fn tool(
        &self,
        program: &str,
        arguments: &[&str],
        input: &str,
    ) -> Result<String, LabError> {
        let home = &self.folder;
        tool(
            &self.tools,
            self.kubeconfig(),
            home,
            program,
            arguments,
            input,
        )
        .await
    }

    /// An error when one of the two has ended by itself.
    ///
    /// # Errors
    /// It has; its log's last lines are in the message.
    pub fn check(&mut self) -> Result<(), LabError> {
        Ok(self.plane.check()?)
    }

    /// Kills both and waits for it.
    pub async fn stop(mut self) {
        self.plane.stop().await;
    }
}

fn audit_log(folder: &Path) -> PathBuf {
    folder.join("audit.log")
}
