//! The real control plane: etcd, API server, controller manager, scheduler. In the lab only the
//! kubelet is missing: kwok keeps Nodes ready, and the lab runs pods. A cluster with real kubelets
//! uses kine on SQLite instead of etcd, like k3s.

mod credentials;

use std::fs::File;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::process::{Child, Command};
use tracing::instrument::WithSubscriber as _;
use tracing::subscriber::NoSubscriber;

pub use credentials::CredentialsError;

use crate::launch;
use crate::rights::AUDIT_POLICY;
use crate::tools::{MissingTool, Tools};
use credentials::{Credentials, User};

/// The port of the API server.
pub(crate) const API_PORT: u16 = 6443;
/// The annotation that makes kwok manage a Node.
pub(crate) const KWOK_ANNOTATION: (&str, &str) = ("kwok.x-k8s.io/node", "fake");
/// The address of the Service `kubernetes`, the first of its range.
const KUBERNETES_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const SERVICE_RANGE: &str = "10.96.0.0/16";
const ETCD_QUOTA_BYTES: u64 = 8 << 30;
const KINE_SOCKET: &str = "kine.sock";
/// Named as in kube-proxy's own role binding.
const PROXY: User<'_> = User {
    file: "kube-proxy",
    name: "system:kube-proxy",
    group: "system:node-proxier",
};
/// How long the API server may take; it needs 3 s on an idle machine.
const READY_WITHIN: Duration = Duration::from_secs(90);
const READY_POLL: Duration = Duration::from_millis(100);
/// Lines of a program's log that an error shows.
const LOG_LINES: usize = 8;
const KWOK_STAGES: &str = include_str!("kwok.yaml");

/// Where the API server of a lab in `folder` logs calls.
pub(crate) fn audit_log(folder: &Path) -> PathBuf {
    folder.join("audit/log")
}

/// Why there is no control plane.
#[derive(Debug, thiserror::Error)]
pub enum ControlPlaneError {
    /// A program is missing.
    #[error(transparent)]
    Tool(#[from] MissingTool),
    /// Certificates or keys could not be made.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A file or folder could not be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}")]
    Spawn {
        /// The program.
        program: &'static str,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
    /// A program ended by itself.
    #[error("{program} ended ({status}); the end of its log {log}:\n{tail}")]
    Ended {
        /// The program.
        program: &'static str,
        /// Its exit status.
        status: String,
        /// Where its log is.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The API server did not become ready.
    #[error("the API server was not ready after {seconds} s; the end of its log {log}:\n{tail}")]
    NotReady {
        /// Seconds waited.
        seconds: u64,
        /// Where its log is.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The written kubeconfig does not work.
    #[error("cannot make a client for the API server")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// One running program.
struct Daemon {
    program: &'static str,
    arguments: Vec<String>,
    child: Child,
    log: PathBuf,
}

/// The running control plane. Killed on drop; nothing of it is kept.
pub(crate) struct ControlPlane {
    /// In start order; each needs those before it.
    daemons: Vec<Daemon>,
    credentials: Credentials,
    client: kube::Client,
}

impl ControlPlane {
    /// Starts everything and waits until the API server is ready. Data, logs
    /// and certificates go into `folder`; processes join `groups`.
    pub(crate) async fn start(
        tools: &Tools,
        folder: &Path,
        index: u8,
        address: Ipv4Addr,
        groups: &[PathBuf],
    ) -> Result<Self, ControlPlaneError> {
        let write = |path: &Path, text: &str| {
            std::fs::write(path, text).map_err(|source| ControlPlaneError::Write {
                path: path.to_owned(),
                source,
            })
        };
        create_folders(folder, &["audit"])?;
        let policy = folder.join("audit/policy.yaml");
        write(&policy, AUDIT_POLICY)?;
        let audit = vec![
            format!("--audit-policy-file={}", policy.display()),
            format!("--audit-log-path={}", audit_log(folder).display()),
            // In MB: never split over two files.
            "--audit-log-maxsize=2000".to_owned(),
        ];
        let mut plane =
            Self::start_api_server(tools, folder, index, address, groups, audit).await?;
        let stages = folder.join("kwok.yaml");
        write(&stages, KWOK_STAGES)?;
        let spawner = Spawner {
            tools,
            folder,
            groups,
        };
        for (program, arguments) in [
            (
                "kube-controller-manager",
                controller_manager_arguments(&plane.credentials),
            ),
            ("kube-scheduler", scheduler_arguments(&plane.credentials)),
            ("kwok", kwok_arguments(&plane.credentials, &stages)),
        ] {
            plane.daemons.push(spawner.spawn(program, &arguments)?);
        }
        Ok(plane)
    }

    /// Starts etcd and an API server with further arguments, and waits until it is ready.
    pub(crate) async fn start_api_server(
        tools: &Tools,
        folder: &Path,
        index: u8,
        address: Ipv4Addr,
        groups: &[PathBuf],
        arguments: Vec<String>,
    ) -> Result<Self, ControlPlaneError> {
        create_folders(folder, &["etcd", "logs"])?;
        let mut plane = Self::prepared(folder, address, &[]).await?;
        let spawner = Spawner {
            tools,
            folder,
            groups,
        };
        let etcd = format!("http://127.77.{index}.1:2379");
        plane
            .daemons
            .push(spawner.spawn("etcd", &etcd_arguments(index, folder, &etcd))?);
        let mut all = apiserver_arguments(&plane.credentials, address, &etcd);
        all.extend(arguments);
        plane.daemons.push(spawner.spawn("kube-apiserver", &all)?);
        plane.wait_until_ready().await?;
        Ok(plane)
    }

    /// Starts what kubelets named `nodes` need, with kine on SQLite as the datastore, and waits
    /// until the API server is ready.
    pub(crate) async fn start_for_kubelets(
        tools: &Tools,
        folder: &Path,
        address: Ipv4Addr,
        nodes: &[&str],
        groups: &[PathBuf],
    ) -> Result<Self, ControlPlaneError> {
        create_folders(folder, &["kine", "logs"])?;
        let names: Vec<(String, String)> = nodes
            .iter()
            .map(|node| (format!("node-{node}"), format!("system:node:{node}")))
            .collect();
        let kubelets = names.iter().map(|(file, name)| User {
            file,
            name,
            group: "system:nodes",
        });
        let users: Vec<User<'_>> = kubelets.chain([PROXY]).collect();
        let mut plane = Self::prepared(folder, address, &users).await?;
        let spawner = Spawner {
            tools,
            folder,
            groups,
        };
        let socket = format!("unix://{}", folder.join(KINE_SOCKET).display());
        let kine = spawner.spawn("kine", &kine_arguments(folder, &socket))?;
        plane.daemons.push(kine);
        let mut arguments = apiserver_arguments(&plane.credentials, address, &socket);
        arguments.extend(kubelet_arguments(&plane.credentials));
        let api_server = spawner.spawn("kube-apiserver", &arguments)?;
        plane.daemons.push(api_server);
        plane.wait_until_ready().await?;
        for (program, arguments) in [
            (
                "kube-controller-manager",
                controller_manager_arguments(&plane.credentials),
            ),
            ("kube-scheduler", scheduler_arguments(&plane.credentials)),
        ] {
            plane.daemons.push(spawner.spawn(program, &arguments)?);
        }
        Ok(plane)
    }

    /// Kills API server and datastore, starts them again on the same data after `pause`,
    /// and waits until they are ready.
    pub(crate) async fn restart(
        &mut self,
        tools: &Tools,
        folder: &Path,
        groups: &[PathBuf],
        pause: Duration,
    ) -> Result<(), ControlPlaneError> {
        // The datastore and the API server come first.
        for daemon in self.daemons.iter_mut().take(2).rev() {
            let program = daemon.program;
            let failed = |source| ControlPlaneError::Spawn { program, source };
            daemon.child.kill().await.map_err(failed)?;
        }
        tokio::time::sleep(pause).await;
        // A killed one leaves its socket, which blocks the address.
        let _ = std::fs::remove_file(folder.join(KINE_SOCKET));
        let spawner = Spawner {
            tools,
            folder,
            groups,
        };
        for daemon in self.daemons.iter_mut().take(2) {
            *daemon = spawner.spawn(daemon.program, &daemon.arguments.clone())?;
        }
        self.wait_until_ready().await
    }

    /// Credentials and a client, without any program yet.
    async fn prepared(
        folder: &Path,
        address: Ipv4Addr,
        users: &[User<'_>],
    ) -> Result<Self, ControlPlaneError> {
        let credentials =
            Credentials::create(folder, address, API_PORT, KUBERNETES_SERVICE, users)?;
        let client = client(&credentials.kubeconfig).await?;
        Ok(Self {
            daemons: Vec::new(),
            credentials,
            client,
        })
    }

    /// The kubeconfig of the kubelet of `node`.
    pub(crate) fn kubeconfig_of_node(folder: &Path, node: &str) -> PathBuf {
        credentials::kubeconfig(folder, &format!("node-{node}"))
    }

    /// The kubeconfig of every kube-proxy.
    pub(crate) fn kubeconfig_of_proxy(folder: &Path) -> PathBuf {
        credentials::kubeconfig(folder, PROXY.file)
    }

    /// The certificate of the authority that signed all others.
    pub(crate) fn ca(&self) -> &Path {
        &self.credentials.ca
    }

    /// The process id of a program; `None` if it has ended.
    pub(crate) fn process(&self, program: &str) -> Option<u32> {
        let daemon = self.daemons.iter().find(|d| d.program == program)?;
        daemon.child.id()
    }

    /// A client with all rights.
    pub(crate) fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// The file that `kubectl` and `helm` take.
    pub(crate) fn kubeconfig(&self) -> &Path {
        &self.credentials.kubeconfig
    }

    /// An error if a program has ended by itself.
    pub(crate) fn check(&mut self) -> Result<(), ControlPlaneError> {
        for daemon in &mut self.daemons {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                return Err(ControlPlaneError::Ended {
                    program: daemon.program,
                    status: status.to_string(),
                    tail: tail(&daemon.log),
                    log: daemon.log.clone(),
                });
            }
        }
        Ok(())
    }

    /// Kills all programs, dependents first. The API server would wait for its clients and then for
    /// etcd, and there is nothing to save.
    pub(crate) async fn stop(&mut self) {
        while let Some(mut daemon) = self.daemons.pop() {
            if let Err(error) = daemon.child.kill().await {
                tracing::warn!(program = daemon.program, %error, "cannot be stopped");
            }
        }
    }

    async fn wait_until_ready(&mut self) -> Result<(), ControlPlaneError> {
        let begin = Instant::now();
        loop {
            let request = http_get("/readyz").map_err(client_error)?;
            // The client logs an error for each unready answer.
            let asked = self.client.request_text(request);
            if asked.with_subscriber(NoSubscriber::new()).await.is_ok() {
                return Ok(());
            }
            self.check()?;
            if begin.elapsed() > READY_WITHIN {
                let log = self.daemons[1].log.clone();
                return Err(ControlPlaneError::NotReady {
                    seconds: READY_WITHIN.as_secs(),
                    tail: tail(&log),
                    log,
                });
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }
}

fn create_folders(folder: &Path, names: &[&str]) -> Result<(), ControlPlaneError> {
    for name in names {
        let path = folder.join(name);
        std::fs::create_dir_all(&path)
            .map_err(|source| ControlPlaneError::Write { path, source })?;
    }
    Ok(())
}

fn http_get(path: &str) -> Result<http::Request<Vec<u8>>, http::Error> {
    http::Request::get(path).body(Vec::new())
}

fn client_error(error: impl std::error::Error + Send + Sync + 'static) -> ControlPlaneError {
    ControlPlaneError::Client(Box::new(error))
}

/// A client for a kubeconfig file.
async fn client(kubeconfig: &Path) -> Result<kube::Client, ControlPlaneError> {
    let file = Kubeconfig::read_from(kubeconfig).map_err(client_error)?;
    let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(client_error)?;
    kube::Client::try_from(config).map_err(client_error)
}

/// Settings shared by all programs of a control plane.
struct Spawner<'a> {
    tools: &'a Tools,
    folder: &'a Path,
    groups: &'a [PathBuf],
}

impl Spawner<'_> {
    fn spawn(
        &self,
        program: &'static str,
        arguments: &[String],
    ) -> Result<Daemon, ControlPlaneError> {
        let path = self.tools.find(program)?;
        let log = self.folder.join("logs").join(format!("{program}.log"));
        // After a restart the log is continued.
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(|source| ControlPlaneError::Write {
                path: log.clone(),
                source,
            })?;
        let failed = |source| ControlPlaneError::Spawn { program, source };
        let enter = launch::enter(self.groups, None);
        let child = Command::new(&enter[0])
            .args(&enter[1..])
            .arg(path)
            .args(arguments)
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output)
            // Not in the terminal's group: Ctrl-C must not end etcd before its clients.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        Ok(Daemon {
            program,
            arguments: arguments.to_vec(),
            child,
            log,
        })
    }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

fn flag(name: &str, value: impl std::fmt::Display) -> String {
    format!("--{name}={value}")
}

fn file(name: &str, path: &Path) -> String {
    flag(name, path.display())
}

/// etcd on its own loopback address, so that labs with different indices do not compete for ports.
fn etcd_arguments(index: u8, folder: &Path, client: &str) -> Vec<String> {
    let peer = format!("http://127.77.{index}.1:2380");
    vec![
        file("data-dir", &folder.join("etcd")),
        flag("listen-client-urls", client),
        flag("advertise-client-urls", client),
        flag("listen-peer-urls", &peer),
        flag("initial-advertise-peer-urls", &peer),
        flag("initial-cluster", format!("default={peer}")),
        // The data is not kept.
        "--unsafe-no-fsync".to_owned(),
        // Large objects that are written often fill the default of 2 GB between two compactions.
        flag("quota-backend-bytes", ETCD_QUOTA_BYTES),
        flag("log-level", "warn"),
    ]
}

fn apiserver_arguments(credentials: &Credentials, address: Ipv4Addr, etcd: &str) -> Vec<String> {
    vec![
        flag("etcd-servers", etcd),
        flag("bind-address", address),
        flag("external-hostname", address),
        flag("advertise-address", address),
        flag("secure-port", API_PORT),
        file("tls-cert-file", &credentials.server_certificate),
        file("tls-private-key-file", &credentials.server_key),
        file("client-ca-file", &credentials.ca),
        file(
            "service-account-key-file",
            &credentials.service_account_public_key,
        ),
        file(
            "service-account-signing-key-file",
            &credentials.service_account_key,
        ),
        flag(
            "service-account-issuer",
            "https://kubernetes.default.svc.cluster.local",
        ),
        // Tokens expire when they say so, as on most managed clusters.
        flag("service-account-extend-token-expiration", false),
        flag("service-cluster-ip-range", SERVICE_RANGE),
        flag("authorization-mode", "Node,RBAC"),
        flag("allow-privileged", true),
        flag("profiling", false),
    ]
}

/// Arguments of an API server that talks to kubelets and restricts them.
fn kubelet_arguments(credentials: &Credentials) -> Vec<String> {
    vec![
        flag("enable-admission-plugins", "NodeRestriction"),
        file("kubelet-client-certificate", &credentials.admin_certificate),
        file("kubelet-client-key", &credentials.admin_key),
        flag("kubelet-preferred-address-types", "InternalIP"),
    ]
}

/// SQLite with k3s's settings.
fn kine_arguments(folder: &Path, socket: &str) -> Vec<String> {
    let database = folder.join("kine/state.db");
    vec![
        flag(
            "endpoint",
            format!(
                "sqlite://{}?_journal=WAL&cache=shared&_busy_timeout=30000&_txlock=immediate",
                database.display()
            ),
        ),
        flag("listen-address", socket),
        flag("metrics-bind-address", 0),
    ]
}

fn controller_manager_arguments(credentials: &Credentials) -> Vec<String> {
    vec![
        file("kubeconfig", &credentials.kubeconfig),
        file("root-ca-file", &credentials.ca),
        file(
            "service-account-private-key-file",
            &credentials.service_account_key,
        ),
        flag("leader-elect", false),
        flag("secure-port", 0),
        flag("profiling", false),
    ]
}

fn scheduler_arguments(credentials: &Credentials) -> Vec<String> {
    vec![
        file("kubeconfig", &credentials.kubeconfig),
        flag("leader-elect", false),
        flag("secure-port", 0),
        flag("profiling", false),
    ]
}

fn kwok_arguments(credentials: &Credentials, stages: &Path) -> Vec<String> {
    let (key, value) = KWOK_ANNOTATION;
    vec![
        file("kubeconfig", &credentials.kubeconfig),
        file("config", stages),
        flag("manage-all-nodes", false),
        flag(
            "manage-nodes-with-annotation-selector",
            format!("{key}={value}"),
        ),
        flag("node-lease-duration-seconds", 40),
    ]
}
