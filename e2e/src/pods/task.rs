//! The life of one pod on one host: volumes, init containers, containers,
//! status, end.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, Pod, PodSpec, Probe, Secret, SecurityContext, ServiceAccount, Volume,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::container::{self, Event, Process, Restart, Runnable};
use super::environment::{Sources, SpecError, arguments, environment};
use super::probe::ProbeSpec;
use super::script::{Mount, Start, User, script};
use super::status::{Conditions, ContainerState, Ended, State, status};
use super::volumes::{Place, TokenWish, needs, place, write};
use super::{Host, Shared};
use crate::config::Image;

/// Interval at which ConfigMaps, Secrets and the age of tokens are checked.
const REFRESH: Duration = Duration::from_secs(10);
/// A token is renewed after this part of its life, as by the kubelet.
const RENEW_AFTER: f64 = 0.8;
/// Pause before a pod that could not be prepared is retried.
const TRY_AGAIN: Duration = Duration::from_secs(1);
/// The user if the pod must not run as root and names none.
const IMAGE_USER: i64 = 65_532;
/// `PATH` of a container without its own.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a pod cannot be started now.
#[derive(Debug, thiserror::Error)]
pub(super) enum PrepareError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("cannot write {path}: {source}")]
    Write {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the API server gave no token")]
    NoToken,
    #[error("the API server did not answer: {0}")]
    Api(#[from] Box<kube::Error>),
}

impl From<kube::Error> for PrepareError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// A token and when to renew it.
struct Token {
    text: String,
    renew_at: Instant,
}

/// One pod, running.
pub(super) struct PodTask {
    shared: Arc<Shared>,
    host: Arc<Host>,
    pod: Pod,
    spec: PodSpec,
    namespace: String,
    name: String,
    uid: String,
    folder: PathBuf,
    tokens: BTreeMap<TokenWish, Token>,
    sources: Sources,
    init: Vec<ContainerState>,
    containers: Vec<ContainerState>,
    conditions: Conditions,
    processes: BTreeMap<String, Process>,
}

/// Pod fields that the API server always sets.
pub(super) struct Identity {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
}

impl Identity {
    pub(super) fn of(pod: &Pod) -> Option<Self> {
        Some(Self {
            namespace: pod.metadata.namespace.clone()?,
            name: pod.metadata.name.clone()?,
            uid: pod.metadata.uid.clone()?,
        })
    }
}

impl PodTask {
    pub(super) fn new(
        shared: Arc<Shared>,
        host: Arc<Host>,
        pod: Pod,
        identity: Identity,
        processes: BTreeMap<String, Process>,
    ) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let states = |containers: &[Container]| {
            containers
                .iter()
                .map(|container| {
                    let image = container.image.as_deref().unwrap_or_default();
                    ContainerState::new(&container.name, image)
                })
                .collect()
        };
        Self {
            folder: shared.folder.join("pods").join(&identity.uid),
            init: states(spec.init_containers.as_deref().unwrap_or_default()),
            containers: states(&spec.containers),
            namespace: identity.namespace,
            name: identity.name,
            uid: identity.uid,
            shared,
            host,
            pod,
            spec,
            tokens: BTreeMap::new(),
            sources: Sources::default(),
            conditions: Conditions::default(),
            processes,
        }
    }

    /// Runs the pod until it is deleted (its update has a deletion timestamp), gone (the sender is
    /// dropped), or finished for good.
    pub(super) async fn run(mut self, mut updates: watch::Receiver<Pod>) {
        if is_finished(&self.pod) {
            return;
        }
        while let Err(error) = self.prepare().await {
            tracing::warn!(pod = self.name, host = self.host.name, %error, "pod waits");
            self.wait_for_config(&error.to_string());
            self.report().await;
            tokio::select! {
                () = tokio::time::sleep(TRY_AGAIN) => {}
                () = deleted(&mut updates) => return self.remove(&updates).await,
            }
        }
        let mut ended = false;
        for number in 0..self.init.len() {
            ended = ended
                || self
                    .drive(Group::Init, number..number + 1, &mut updates)
                    .await;
        }
        if !ended {
            let all = 0..self.containers.len();
            ended = self.drive(Group::Main, all, &mut updates).await;
        }
        if !ended {
            // Finished by itself; the object stays until it is deleted.
            deleted(&mut updates).await;
        }
        self.remove(&updates).await;
    }

    /// Runs some containers until they have ended. True if the reason is that the pod is deleted or
    /// gone.
    async fn drive(
        &mut self,
        group: Group,
        numbers: std::ops::Range<usize>,
        updates: &mut watch::Receiver<Pod>,
    ) -> bool {
        let (tell, mut told) = mpsc::unbounded_channel();
        let (stop_sender, stop) = watch::channel(None);
        let mut supervisors = JoinSet::new();
        for number in numbers {
            match self.runnable(group, number) {
                Ok(runnable) => {
                    let tell = tell.clone();
                    let stop = stop.clone();
                    supervisors.spawn(container::supervise(
                        runnable,
                        move |event| drop(tell.send((number, event))),
                        stop,
                    ));
                }
                Err(error) => {
                    tracing::warn!(pod = self.name, host = self.host.name, %error, "container refused");
                    self.set_waiting(
                        group,
                        number,
                        "CreateContainerConfigError",
                        error.to_string(),
                    );
                }
            }
        }
        drop(tell);
        self.report().await;
        let mut refresh = tokio::time::interval(REFRESH);
        let mut ending = false;
        loop {
            tokio::select! {
                event = told.recv() => match event {
                    Some((number, event)) => {
                        self.apply(group, number, event);
                        while let Ok((number, event)) = told.try_recv() {
                            self.apply(group, number, event);
                        }
                        self.report().await;
                    }
                    None => break,
                },
                () = deleted(updates), if !ending => {
                    ending = true;
                    let _ = stop_sender.send(Some(grace(updates)));
                }
                _ = refresh.tick(), if !ending => self.refresh().await,
            }
        }
        while supervisors.join_next().await.is_some() {}
        if !ending && self.refused(group) {
            deleted(updates).await;
            return true;
        }
        ending
    }

    /// Whether a container of the group could not be started at all.
    fn refused(&self, group: Group) -> bool {
        self.states(group)
            .iter()
            .any(|container| matches!(&container.state, State::Waiting { reason, .. } if *reason == "CreateContainerConfigError"))
    }

    fn states(&self, group: Group) -> &[ContainerState] {
        match group {
            Group::Init => &self.init,
            Group::Main => &self.containers,
        }
    }

    fn states_mut(&mut self, group: Group) -> &mut [ContainerState] {
        match group {
            Group::Init => &mut self.init,
            Group::Main => &mut self.containers,
        }
    }

    fn set_waiting(&mut self, group: Group, number: usize, reason: &'static str, message: String) {
        let container = &mut self.states_mut(group)[number];
        container.ready = false;
        container.state = State::Waiting { reason, message };
    }

    fn wait_for_config(&mut self, message: &str) {
        for number in 0..self.containers.len() {
            self.set_waiting(
                Group::Main,
                number,
                "CreateContainerConfigError",
                message.to_owned(),
            );
        }
    }

    fn apply(&mut self, group: Group, number: usize, event: Event) {
        let now = now();
        let container = &mut self.states_mut(group)[number];
        match event {
            Event::Started => {
                if let State::Ended(ended) = &container.state {
                    container.last = Some(ended.clone());
                    container.restarts += 1;
                }
                container.state = State::Running { since: now };
            }
            Event::Ended { code } => {
                let started = match &container.state {
                    State::Running { since } => since.clone(),
                    _ => now.clone(),
                };
                container.ready = false;
                container.state = State::Ended(Ended {
                    code,
                    started,
                    finished: now,
                });
            }
            Event::CannotStart(message) => {
                self.set_waiting(group, number, "RunContainerError", message);
            }
            Event::Ready(ready) => container.ready = ready,
        }
    }

    /// Fetches the pod's sources and fills its volumes.
    async fn prepare(&mut self) -> Result<(), PrepareError> {
        self.fetch().await?;
        self.fill_volumes()?;
        // Containers are refused one by one later; a missing key is not.
        let containers = self.spec.init_containers.iter().flatten();
        for container in containers.chain(&self.spec.containers) {
            environment(&self.pod, container, self.host.facts(), &self.sources)?;
        }
        Ok(())
    }

    async fn refresh(&mut self) {
        let refreshed = match self.fetch().await {
            Ok(()) => self.fill_volumes(),
            Err(error) => Err(error),
        };
        if let Err(error) = refreshed {
            tracing::warn!(pod = self.name, %error, "volumes keep their content");
        }
    }

    async fn fetch(&mut self) -> Result<(), PrepareError> {
        let client = self.shared.client.clone();
        let needs = needs(&self.spec);
        let config_maps = Api::<ConfigMap>::namespaced(client.clone(), &self.namespace);
        for name in needs.config_maps {
            if let Some(map) = config_maps.get_opt(&name).await? {
                self.sources.config_maps.insert(name, map);
            }
        }
        let secrets = Api::<Secret>::namespaced(client, &self.namespace);
        for name in needs.secrets {
            if let Some(secret) = secrets.get_opt(&name).await? {
                self.sources.secrets.insert(name, secret);
            }
        }
        for wish in needs.tokens {
            let due = self
                .tokens
                .get(&wish)
                .is_none_or(|token| token.renew_at <= Instant::now());
            if due {
                let token = self.request_token(&wish).await?;
                self.tokens.insert(wish, token);
            }
        }
        Ok(())
    }

    /// Requests a token bound to this pod, and so to its node.
    async fn request_token(&self, wish: &TokenWish) -> Result<Token, PrepareError> {
        let account = self
            .spec
            .service_account_name
            .as_deref()
            .unwrap_or("default");
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: wish.audience.iter().cloned().collect(),
                expiration_seconds: Some(wish.seconds),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(self.name.clone()),
                    uid: Some(self.uid.clone()),
                }),
            },
            ..TokenRequest::default()
        };
        let accounts =
            Api::<ServiceAccount>::namespaced(self.shared.client.clone(), &self.namespace);
        let answer = accounts
            .create_token_request(account, &PostParams::default(), &request)
            .await?;
        let status = answer.status.ok_or(PrepareError::NoToken)?;
        let life = status
            .expiration_timestamp
            .0
            .duration_since(Timestamp::now());
        let life = Duration::try_from(life).unwrap_or(Duration::ZERO);
        Ok(Token {
            text: status.token,
            renew_at: Instant::now() + life.mul_f64(RENEW_AFTER),
        })
    }

    /// The folder of a volume on this machine.
    fn volume_folder(&self, volume: &Volume) -> Result<PathBuf, PrepareError> {
        Ok(match self.place(volume)? {
            Place::Pod(_) => self.folder.join("volumes").join(&volume.name),
            Place::Host(path) => self
                .host
                .folder
                .join(path.strip_prefix("/").unwrap_or(&path)),
            Place::Machine(path) => path,
        })
    }

    fn place(&self, volume: &Volume) -> Result<Place, SpecError> {
        let texts = self.tokens.iter();
        let texts = texts
            .map(|(wish, token)| (wish.clone(), token.text.clone()))
            .collect();
        place(&self.pod, volume, self.host.address, &self.sources, &texts)
    }

    fn fill_volumes(&self) -> Result<(), PrepareError> {
        for volume in self.spec.volumes.iter().flatten() {
            let folder = self.volume_folder(volume)?;
            let place = self.place(volume)?;
            if matches!(place, Place::Machine(_)) {
                continue;
            }
            let failed = |source| PrepareError::Write {
                path: folder.clone(),
                source,
            };
            std::fs::create_dir_all(&folder).map_err(failed)?;
            if let Place::Pod(files) = place {
                write(&folder, &files).map_err(failed)?;
                if volume.empty_dir.is_some() {
                    // As the kubelet makes it: writable for any user of the container.
                    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
                    std::fs::set_permissions(&folder, mode).map_err(failed)?;
                }
            }
        }
        Ok(())
    }

    /// Writes a container's start script.
    fn runnable(&self, group: Group, number: usize) -> Result<Runnable, PrepareError> {
        let container = match group {
            Group::Init => &self.spec.init_containers.as_deref().unwrap_or_default()[number],
            Group::Main => &self.spec.containers[number],
        };
        let image = self.image(container)?;
        let mut variables = BTreeMap::from([
            ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
            ("HOME".to_owned(), "/".to_owned()),
            ("HOSTNAME".to_owned(), self.name.clone()),
            (
                "KUBERNETES_SERVICE_HOST".to_owned(),
                self.shared.api.ip().to_string(),
            ),
            (
                "KUBERNETES_SERVICE_PORT".to_owned(),
                self.shared.api.port().to_string(),
            ),
        ]);
        variables.extend(image.environment.clone());
        let own = environment(&self.pod, container, self.host.facts(), &self.sources)?;
        variables.extend(own);

        let folder = self.folder.join(&container.name);
        let path = folder.join("start.sh");
        let (program, words) = command(image, container, &variables);
        let content = script(&Start {
            join_files: &self.host.join_files,
            namespace: self.host.namespace.as_deref(),
            mounts: &self.mounts(container)?,
            stash: &folder.join("stash"),
            read_only_root: security(container, |context| context.read_only_root_filesystem)
                .unwrap_or(false),
            user: self.user(container),
            working_directory: container.working_dir.as_deref(),
            program: &program,
            arguments: &words,
        });
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(&path, content))
            .map_err(|source| PrepareError::Write {
                path: path.clone(),
                source,
            })?;
        let probe = |probe: Option<&Probe>| {
            let spec = probe.map(|probe| ProbeSpec::of(container, probe))?;
            if spec.is_none() {
                tracing::warn!(
                    pod = self.name,
                    "the lab asks http and tcp probes only and takes this one as passed"
                );
            }
            spec
        };
        Ok(Runnable {
            script: path,
            environment: variables,
            log: self.shared.log(&self.name, &container.name),
            restart: match group {
                Group::Main => self.restart(),
                Group::Init if self.restart() == Restart::Never => Restart::Never,
                Group::Init => Restart::OnFailure,
            },
            address: IpAddr::V4(self.host.address),
            namespace: self.host.namespace.clone(),
            startup: probe(container.startup_probe.as_ref()),
            readiness: probe(container.readiness_probe.as_ref()),
            liveness: probe(container.liveness_probe.as_ref()),
            process: self
                .processes
                .get(&container.name)
                .cloned()
                .unwrap_or_default(),
            suspended: self.host.suspended.subscribe(),
        })
    }

    fn image(&self, container: &Container) -> Result<&Image, SpecError> {
        let name = container.image.as_deref().unwrap_or_default();
        self.shared
            .images
            .get(repository(name))
            .ok_or_else(|| SpecError::Image(name.to_owned()))
    }

    fn mounts(&self, container: &Container) -> Result<Vec<Mount>, PrepareError> {
        let mut mounts = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let mut volumes = self.spec.volumes.iter().flatten();
            let volume = volumes.find(|volume| volume.name == mount.name);
            let volume = volume.ok_or_else(|| SpecError::Volume(mount.name.clone()))?;
            let mut source = self.volume_folder(volume)?;
            if let Some(part) = &mount.sub_path {
                source.push(part);
            }
            mounts.push(Mount {
                source,
                target: PathBuf::from(&mount.mount_path),
                read_only: mount.read_only.unwrap_or(false),
            });
        }
        Ok(mounts)
    }

    fn user(&self, container: &Container) -> User {
        let pod = self.spec.security_context.as_ref();
        let user = security(container, |context| context.run_as_user)
            .or_else(|| pod.and_then(|context| context.run_as_user));
        let group = security(container, |context| context.run_as_group)
            .or_else(|| pod.and_then(|context| context.run_as_group));
        let not_root = security(container, |context| context.run_as_non_root)
            .or_else(|| pod.and_then(|context| context.run_as_non_root))
            .unwrap_or(false);
        User {
            user: user.or(not_root.then_some(IMAGE_USER)),
            group,
            no_new_privileges: security(container, |context| context.allow_privilege_escalation)
                == Some(false),
        }
    }

    fn restart(&self) -> Restart {
        match self.spec.restart_policy.as_deref() {
            Some("OnFailure") => Restart::OnFailure,
            Some("Never") => Restart::Never,
            _ => Restart::Always,
        }
    }

    /// Reports the pod's status to the API server. A failed report is repeated with the next
    /// change, as by the kubelet.
    async fn report(&mut self) {
        let status = status(
            &self.init,
            &self.containers,
            self.restart() == Restart::Always,
            &self.host.address.to_string(),
            &mut self.conditions,
            &now(),
        );
        let patch = Patch::Strategic(serde_json::json!({
            // Another pod of this name is not this one.
            "metadata": {"uid": self.uid},
            "status": status,
        }));
        let reported = self
            .pods()
            .patch_status(&self.name, &PatchParams::default(), &patch)
            .await;
        match reported {
            Err(kube::Error::Api(error)) if [404, 409].contains(&error.code) => {}
            Err(error) => tracing::warn!(pod = self.name, %error, "cannot report a pod's status"),
            Ok(_) => {}
        }
    }

    /// Confirms to the API server that nothing of the pod runs any more, and removes its volumes.
    /// Logs stay.
    async fn remove(mut self, updates: &watch::Receiver<Pod>) {
        let gone = updates.has_changed().is_err();
        if !gone {
            self.report().await;
            let parameters = DeleteParams {
                grace_period_seconds: Some(0),
                preconditions: Some(Preconditions {
                    uid: Some(self.uid.clone()),
                    resource_version: None,
                }),
                ..DeleteParams::default()
            };
            match self.pods().delete(&self.name, &parameters).await {
                Err(kube::Error::Api(error)) if [404, 409].contains(&error.code) => {}
                Err(error) => tracing::warn!(pod = self.name, %error, "cannot remove a pod"),
                Ok(_) => {}
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::debug!(folder = %self.folder.display(), %error, "a pod's folder stays");
        }
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.shared.client.clone(), &self.namespace)
    }
}

/// One of a pod's two lists of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Group {
    Init,
    Main,
}

/// Waits until the pod is being deleted or is gone.
async fn deleted(updates: &mut watch::Receiver<Pod>) {
    // An error means gone, which counts as deleted.
    let _ = updates
        .wait_for(|pod| pod.metadata.deletion_timestamp.is_some())
        .await;
}

/// Grace period of a pod's processes; none if the pod is gone already.
fn grace(updates: &watch::Receiver<Pod>) -> Duration {
    if updates.has_changed().is_err() {
        return Duration::ZERO;
    }
    let seconds = updates.borrow().metadata.deletion_grace_period_seconds;
    Duration::from_secs(seconds.and_then(|s| u64::try_from(s).ok()).unwrap_or(0))
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn security<T>(container: &Container, field: impl Fn(&SecurityContext) -> Option<T>) -> Option<T> {
    container.security_context.as_ref().and_then(field)
}

/// The program and its arguments: the image's, unless the pod sets others. A command with the file
/// name of the image's own program means that program.
fn command(
    image: &Image,
    container: &Container,
    variables: &BTreeMap<String, String>,
) -> (PathBuf, Vec<String>) {
    let own = arguments(container.args.as_deref().unwrap_or_default(), variables);
    let words = arguments(container.command.as_deref().unwrap_or_default(), variables);
    let Some((first, rest)) = words.split_first() else {
        return (image.program.clone(), own);
    };
    let same = Path::new(first).file_name() == image.program.file_name();
    let program = if same {
        image.program.clone()
    } else {
        PathBuf::from(first)
    };
    (program, rest.iter().cloned().chain(own).collect())
}

/// An image's name without tag and digest.
fn repository(image: &str) -> &str {
    let name = image.split('@').next().unwrap_or(image);
    let start = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[start..].find(':') {
        Some(colon) => &name[..start + colon],
        None => name,
    }
}

/// Now, as the API server writes times.
fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_and_digests_do_not_name_another_image() {
        for image in [
            "registry:5000/lamina/operator",
            "registry:5000/lamina/operator:0.1.0",
            "registry:5000/lamina/operator:0.1.0@sha256:00",
        ] {
            assert_eq!(repository(image), "registry:5000/lamina/operator");
        }
        assert_eq!(repository("operator:1"), "operator");
    }

    #[test]
    fn a_command_replaces_the_program_unless_it_names_it() {
        let image = Image::from(PathBuf::from("/build/lamina-agent"));
        let container = |command: &[&str], args: &[&str]| {
            serde_json::from_value::<Container>(serde_json::json!({
                "name": "c", "command": command, "args": args,
            }))
            .unwrap()
        };
        let variables = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        let run = |command_words: &[&str], args: &[&str]| {
            let (program, words) = command(&image, &container(command_words, args), &variables);
            format!("{} {}", program.display(), words.join(" "))
        };
        assert_eq!(
            run(&[], &["run", "--a=$(A)"]),
            "/build/lamina-agent run --a=1"
        );
        assert_eq!(
            run(&["/bin/lamina-agent", "x"], &["y"]),
            "/build/lamina-agent x y"
        );
        assert_eq!(run(&["/bin/sh", "-c"], &["y"]), "/bin/sh -c y");
    }
}
