//! The lab: a control plane and emulated hosts on one machine, and the tests and demo that run on it.
//!
//! Real are etcd, API server, controllers, scheduler, the chart, its roles and
//! tokens, and the processes that pods describe. Emulated are hosts (network
//! namespaces with a share of the processors), the links between them, and the
//! container runtime.

mod api_server;
mod cgroup;
pub mod cluster;
mod config;
mod control_plane;
pub mod fleet;
mod index;
mod interrupt;
mod lab;
mod launch;
pub mod metrics;
pub mod netlab;
mod nodes;
mod pods;
pub mod rights;
pub mod scene;
pub mod site;
mod tools;
pub mod workload;

pub use api_server::ApiServer;
pub use cgroup::CgroupError;
pub use config::{HostSpec, Image, LabConfig, Links, Tier};
pub use control_plane::{ControlPlaneError, CredentialsError};
pub use index::{IndexError, IndexLock};
pub use lab::{Lab, LabError};
pub use netlab::{CONTROL, Counters, Link};
pub use nix::sys::signal::Signal;
pub use nodes::{CONTROL_PLANE_LABEL, TIER_LABEL, WORKER_LABEL};
pub use tools::MissingTool;
