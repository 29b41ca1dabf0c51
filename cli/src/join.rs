//! `kubectl lamina join`: creates the ComputeNode of a host that is not a Node, and the file by
//! which a machine becomes that host. Uses `kubectl` to reach the cluster.

use crate::args::JoinArgs;
use jiff::{SignedDuration, Timestamp};
use lamina_model::Digest;
use serde_json::{Value, json};
use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bounds of a token's validity.
const VALID: (SignedDuration, SignedDuration) = (
    SignedDuration::from_mins(1),
    SignedDuration::from_hours(7 * 24),
);
/// Label of a host's tier.
const TIER_LABEL: &str = "serving.lamina.dev/tier";
/// Field manager of written objects.
const MANAGER: &str = "kubectl-lamina";

/// Why no host can join.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum JoinError {
    #[error(
        "`{0}` cannot be a host's name: give lower-case letters, digits and `-`, with dots between"
    )]
    Name(String),
    #[error("`{0}` says no operator: give HOST:PORT, as the machine reaches it")]
    Operator(String),
    #[error("`{0}` is no label: give KEY=VALUE")]
    Label(String),
    #[error("--valid takes 1min to 168h, not {0}")]
    Valid(SignedDuration),
    #[error("a Node is called `{0}`: its agent is that host; take another name")]
    IsNode(String),
    #[error(
        "ConfigMap {0} has no certificate authority: hosts join where the chart's `tls.mode` is not `disabled`, and the operator runs"
    )]
    NoAuthority(String),
    #[error("cannot run kubectl; is it in PATH?")]
    Kubectl(#[source] io::Error),
    #[error("`kubectl {0}` failed: {1}")]
    Failed(String, String),
    #[error("`kubectl {0}` answered no JSON")]
    Answer(String, #[source] serde_json::Error),
    #[error("cannot write {}", .0.display())]
    Write(PathBuf, #[source] io::Error),
}

/// Creates the object, and writes the file. Returns the file's path.
///
/// # Errors
/// See [`JoinError`].
pub fn join(args: &JoinArgs, now: Timestamp) -> Result<PathBuf, JoinError> {
    checked(args)?;
    let kubectl = Kubectl { args };
    let node = [
        "get",
        "node",
        &args.name,
        "--ignore-not-found",
        "--output=name",
    ];
    if !kubectl.run(&node, "")?.trim().is_empty() {
        return Err(JoinError::IsNode(args.name.clone()));
    }
    let authorities = authorities(&kubectl)?;
    let token: String = rand::random::<[u8; 32]>()
        .map(|b| format!("{b:02x}"))
        .concat();
    let path = args.out.clone();
    let path = path.unwrap_or_else(|| PathBuf::from(format!("{}.join", args.name)));
    // First: a token without its file would be useless.
    write(&path, &file(args, &token, &authorities))?;
    let apply = [
        "apply",
        "--server-side",
        "--force-conflicts",
        "--filename=-",
    ];
    let manager = format!("--field-manager={MANAGER}");
    let apply = [&apply[..], &[manager.as_str()]].concat();
    let made = kubectl.run(&apply, &object(args, &token, now)?.to_string());
    if let Err(error) = made {
        let _ = fs::remove_file(&path);
        return Err(error);
    }
    Ok(path)
}

fn checked(args: &JoinArgs) -> Result<(), JoinError> {
    if !is_name(&args.name) {
        return Err(JoinError::Name(args.name.clone()));
    }
    let operator = args.operator.rsplit_once(':');
    let is_reachable = operator.is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if !is_reachable {
        return Err(JoinError::Operator(args.operator.clone()));
    }
    if args.valid < VALID.0 || args.valid > VALID.1 {
        return Err(JoinError::Valid(args.valid));
    }
    Ok(())
}

/// A valid Node name, short enough for a certificate.
fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 200 && name.split('.').all(is_label)
}

/// The authorities that agents of this release trust, in PEM.
fn authorities(kubectl: &Kubectl<'_>) -> Result<String, JoinError> {
    let name = format!("{}-ca", kubectl.args.release);
    let namespace = format!("--namespace={}", kubectl.args.namespace);
    let get = ["get", "configmap", &name, &namespace, "--output=json"];
    let answer = kubectl.run(&get, "")?;
    let answer: Value =
        serde_json::from_str(&answer).map_err(|e| JoinError::Answer(get.join(" "), e))?;
    let pem = answer["data"]["ca.crt"].as_str().unwrap_or_default();
    if pem.trim().is_empty() {
        let name = format!("{}/{name}", kubectl.args.namespace);
        return Err(JoinError::NoAuthority(name));
    }
    Ok(pem.to_owned())
}

/// The join file, with the token.
fn file(args: &JoinArgs, token: &str, authorities: &str) -> Value {
    json!({
        "host": args.name,
        "operator": args.operator,
        "token": token,
        "authorities": authorities,
    })
}

/// The host, with the token's hash.
fn object(args: &JoinArgs, token: &str, now: Timestamp) -> Result<Value, JoinError> {
    let mut labels = serde_json::Map::new();
    for label in &args.label {
        let pair = label.split_once('=').filter(|(key, _)| !key.is_empty());
        let (key, value) = pair.ok_or_else(|| JoinError::Label(label.clone()))?;
        labels.insert(key.to_owned(), value.into());
    }
    if let Some(tier) = args.tier {
        labels.insert(TIER_LABEL.to_owned(), tier.label().into());
    }
    let until = now
        .checked_add(args.valid)
        .map_err(|_| JoinError::Valid(args.valid))?;
    let until = Timestamp::from_second(until.as_second()).unwrap_or(until);
    let mut join = json!({
        "tokenSha256": Digest::of(token.as_bytes()).as_str(),
        "expiresAt": until.to_string(),
    });
    if let Some(address) = args.address {
        join["address"] = address.to_string().into();
    }
    Ok(json!({
        "apiVersion": "serving.lamina.dev/v1alpha1",
        "kind": "ComputeNode",
        "metadata": { "name": args.name, "labels": labels },
        "spec": { "join": join },
    }))
}

/// Writes a file that only its owner can read.
fn write(path: &Path, content: &Value) -> Result<(), JoinError> {
    let failed = |error| JoinError::Write(path.to_owned(), error);
    // An existing one may be readable by others.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = file.map_err(failed)?;
    file.write_all(format!("{content:#}\n").as_bytes())
        .map_err(failed)
}

/// `kubectl`, with the user's cluster.
struct Kubectl<'a> {
    args: &'a JoinArgs,
}

impl Kubectl<'_> {
    fn run(&self, arguments: &[&str], input: &str) -> Result<String, JoinError> {
        let mut command = Command::new("kubectl");
        command.args(arguments);
        if let Some(context) = &self.args.context {
            command.arg(format!("--context={context}"));
        }
        if let Some(kubeconfig) = &self.args.kubeconfig {
            command.arg("--kubeconfig").arg(kubeconfig);
        }
        let streams = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = streams.spawn().map_err(JoinError::Kubectl)?;
        if let Some(mut stdin) = child.stdin.take() {
            // If it does not read the input, it reports why itself.
            let _ = stdin.write_all(input.as_bytes());
        }
        let output = child.wait_with_output().map_err(JoinError::Kubectl)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(JoinError::Failed(arguments.join(" "), said))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Command as Subcommand};
    use clap::Parser as _;

    fn args(options: &str) -> JoinArgs {
        let words = ["kubectl-lamina", "join"].into_iter();
        let words = words.chain(options.split_whitespace());
        match Cli::try_parse_from(words).unwrap().command {
            Subcommand::Join(args) => *args,
            Subcommand::Plan(_) => unreachable!(),
        }
    }

    #[test]
    fn the_object_has_the_hash_and_the_file_the_token() {
        let args = args(
            "cam-9 --operator edge.example:9000 --tier device --label site=roof --valid 15m --address 10.0.0.9",
        );
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let object = object(&args, "secret", now).unwrap();
        assert_eq!(
            object["spec"]["join"],
            json!({
                "tokenSha256": "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b",
                "expiresAt": "2023-11-14T22:28:20Z",
                "address": "10.0.0.9",
            })
        );
        assert_eq!(
            object["metadata"]["labels"],
            json!({"site": "roof", "serving.lamina.dev/tier": "device"})
        );
        assert!(!object.to_string().contains("secret"));
        let file = file(&args, "secret", "PEM");
        assert_eq!(
            file,
            json!({"host": "cam-9", "operator": "edge.example:9000", "token": "secret", "authorities": "PEM"})
        );
    }

    #[test]
    fn what_nobody_can_join_by_is_refused_before_the_cluster_is_asked() {
        let refused = |options: &str| checked(&args(options)).unwrap_err();
        assert!(matches!(
            refused("Cam_9 --operator a:1"),
            JoinError::Name(_)
        ));
        for operator in ["edge", "edge:", ":9000", "https://edge:9000", "edge:0"] {
            let options = format!("cam-9 --operator {operator}");
            assert!(
                matches!(refused(&options), JoinError::Operator(_)),
                "{operator}"
            );
        }
        for valid in ["10s", "200h"] {
            let options = format!("cam-9 --operator a:1 --valid {valid}");
            assert!(matches!(refused(&options), JoinError::Valid(_)));
        }
        let labelled = args("cam-9 --operator a:1 --label site");
        let refused = object(&labelled, "t", Timestamp::UNIX_EPOCH).unwrap_err();
        assert!(matches!(refused, JoinError::Label(_)));
    }

    #[test]
    fn nobody_else_reads_the_file_though_one_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cam-9.join");
        fs::write(&path, "open").unwrap();
        write(&path, &json!({"token": "secret"})).unwrap();
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
