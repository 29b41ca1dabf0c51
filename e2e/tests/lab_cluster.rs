//! The control plane and the pod runner: a DaemonSet and a Deployment bound by
//! the real scheduler, with real tokens, killed, deleted and cut off.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking too")]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use lamina_e2e::{CONTROL, HostSpec, Image, Lab, LabConfig, Link, Links, Signal, Tier};

const MS: Duration = Duration::from_millis(1);
const MIB: u64 = 1 << 20;
const WITHIN: Duration = Duration::from_secs(30);

const MANIFEST: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: default}
data: {greeting: hello, settings.txt: "a = 1"}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: echo, namespace: default}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: echo, namespace: default}
spec:
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      serviceAccountName: echo
      terminationGracePeriodSeconds: 2
      securityContext: {runAsNonRoot: true, runAsUser: 65532, runAsGroup: 65532}
      containers:
        - name: echo
          image: lab/echo:1.2.3
          args: ["$(POD_IP):8080", "--node=$(NODE_NAME)"]
          env:
            - {name: NODE_NAME, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
            - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
            - {name: GREETING, valueFrom: {configMapKeyRef: {name: settings, key: greeting}}}
          ports: [{name: http, containerPort: 8080}]
          readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1, failureThreshold: 1}
          resources: {requests: {cpu: 10m, memory: 16Mi}}
          securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true}
          volumeMounts:
            - {name: settings, mountPath: /etc/lamina-echo}
            - {name: data, mountPath: /var/lib/lamina-echo}
            - {name: top, mountPath: /lamina-echo}
      volumes:
        - {name: settings, configMap: {name: settings}}
        - {name: data, emptyDir: {}}
        - {name: top, emptyDir: {}}
"#;

fn config(dir: PathBuf) -> LabConfig {
    let host = |name, tier, cpu| HostSpec::new(name, tier, cpu, 512 * MIB);
    LabConfig {
        index: None,
        dir,
        hosts: vec![
            host("cam-1", Tier::Device, 250),
            host("cam-2", Tier::Device, 250),
            host("edge-1", Tier::Edge, 1000),
            host("edge-2", Tier::Edge, 1000),
            host("cloud-0", Tier::Cloud, 2000),
        ],
        links: Links::all(Link::new(5 * MS, 50_000_000)),
        images: BTreeMap::from([(
            "lab/echo".to_owned(),
            Image::from(PathBuf::from(env!("CARGO_BIN_EXE_lab-echo"))),
        )]),
        control_node: false,
    }
}

/// GETs from an echo server as a neighbour on another host does.
fn get(lab: &Lab, from: &str, to: &str, path: &str) -> std::io::Result<String> {
    let address = (lab.address(to).unwrap(), 8080).into();
    let mut stream = lab.network().within(from, || {
        TcpStream::connect_timeout(&address, Duration::from_secs(2))
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.contains(" 200 ") {
        true => Ok(body.to_owned()),
        false => Err(std::io::Error::other(body.to_owned())),
    }
}

async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(value) = done().await {
            return value;
        }
        assert!(begin.elapsed() < WITHIN, "{what} did not happen");
        tokio::time::sleep(50 * MS).await;
    }
}

async fn pod_on(lab: &Lab, host: &str) -> Option<Pod> {
    let pods = Api::<Pod>::namespaced(lab.client(), "default");
    let of_host = ListParams::default()
        .labels("app=echo")
        .fields(&format!("spec.nodeName={host}"));
    let list = pods.list(&of_host).await.unwrap();
    list.into_iter()
        .find(|pod| pod.metadata.deletion_timestamp.is_none())
}

fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut conditions = status
        .and_then(|s| s.conditions.as_ref())
        .into_iter()
        .flatten();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn ready_pod_on(lab: &Lab, host: &str) -> Pod {
    until(&format!("a ready pod on {host}"), async || {
        pod_on(lab, host).await.filter(is_ready)
    })
    .await
}

fn restarts(pod: &Pod) -> i32 {
    pod.status
        .as_ref()
        .unwrap()
        .container_statuses
        .as_ref()
        .unwrap()[0]
        .restart_count
}

async fn review(lab: &Lab, token: &str) -> UserInfo {
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: Some(token.to_owned()),
            ..TokenReviewSpec::default()
        },
        ..TokenReview::default()
    };
    let api = Api::<TokenReview>::all(lab.client());
    let answer = api.create(&PostParams::default(), &review).await.unwrap();
    let status = answer.status.unwrap();
    assert_eq!(status.authenticated, Some(true), "{status:?}");
    status.user.unwrap()
}

const TOKEN: &str = "/file/var/run/secrets/kubernetes.io/serviceaccount/token";

/// One lab for all of it: starting one takes several seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_run_where_the_scheduler_put_them() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter("lamina_e2e=debug,warn")
        .with_test_writer()
        .try_init();
    let folder = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    let lab = Lab::start(config(folder.path().to_owned())).await.unwrap();
    println!("lab started in {:?}", begin.elapsed());
    let hosts: Vec<String> = lab
        .hosts()
        .filter(|h| *h != CONTROL)
        .map(str::to_owned)
        .collect();

    let begin = Instant::now();
    lab.apply(MANIFEST).await.unwrap();
    for host in &hosts {
        ready_pod_on(&lab, host).await;
    }
    println!(
        "a pod ready on each of {} hosts in {:?}",
        hosts.len(),
        begin.elapsed()
    );
    println!(
        "{}",
        lab.kubectl(&["get", "pods,nodes", "-o", "wide"])
            .await
            .unwrap()
    );

    sees_what_its_manifest_says(&lab);
    has_a_token_bound_to_pod_and_node(&lab).await;
    has_no_more_rights_than_rbac_gives(&lab).await;
    is_started_again_when_killed(&lab).await;
    stays_down_while_suspended(&lab).await;
    is_replaced_when_deleted(&lab).await;
    loses_readiness_when_its_probe_fails(&lab).await;
    is_cut_off_by_a_partition(&lab).await;
    an_unknown_image_is_refused_by_name(&lab).await;
    a_host_is_as_slow_as_its_share(&lab).await;

    let dump = folder.path().join("dump");
    lab.dump(&dump).await.unwrap();
    let pod = ready_pod_on(&lab, "cam-2").await.name_any();
    assert!(dump.join(format!("{pod}.echo.log")).exists());
    assert!(lab.pod_log(&pod).unwrap().contains("listening on"));

    let namespace = lab.network().namespace("cam-1").unwrap().unwrap();
    let begin = Instant::now();
    lab.stop().await.unwrap();
    println!("lab stopped in {:?}", begin.elapsed());
    assert!(!namespace.exists());
}

fn sees_what_its_manifest_says(lab: &Lab) {
    let ask = |path: &str| get(lab, "edge-1", "cam-1", path);
    assert_eq!(ask("/env/NODE_NAME").unwrap(), "cam-1");
    assert_eq!(ask("/env/GREETING").unwrap(), "hello");
    let address = lab.address("cam-1").unwrap();
    assert_eq!(
        ask("/args").unwrap(),
        format!("{address}:8080 --node=cam-1")
    );
    assert_eq!(ask("/file/etc/lamina-echo/settings.txt").unwrap(), "a = 1");
    assert_eq!(
        ask("/env/KUBERNETES_SERVICE_HOST").unwrap(),
        lab.address(CONTROL).unwrap().to_string()
    );
    let status = ask("/user").unwrap();
    assert!(status.contains("Uid:\t65532"), "{status}");
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    for folder in ["var/lib/lamina-echo", "lamina-echo"] {
        ask(&format!("/write/{folder}/x")).unwrap();
        assert_eq!(ask(&format!("/file/{folder}/x")).unwrap(), "written\n");
        // Every pod has its own.
        assert!(get(lab, "cam-1", "edge-1", &format!("/file/{folder}/x")).is_err());
    }
    assert!(
        ask("/write/var/tmp/lamina-echo").is_err(),
        "the root is read-only"
    );
    assert!(!PathBuf::from("/lamina-echo").exists());
}

async fn has_a_token_bound_to_pod_and_node(lab: &Lab) {
    let pod = ready_pod_on(lab, "cam-1").await;
    let user = review(lab, &get(lab, "edge-1", "cam-1", TOKEN).unwrap()).await;
    assert_eq!(user.username.unwrap(), "system:serviceaccount:default:echo");
    let extra = user.extra.unwrap();
    let one = |key: &str| extra[&format!("authentication.kubernetes.io/{key}")].join(",");
    assert_eq!(one("pod-name"), pod.name_any());
    assert_eq!(one("pod-uid"), pod.uid().unwrap());
    assert_eq!(one("node-name"), "cam-1");
}

async fn has_no_more_rights_than_rbac_gives(lab: &Lab) {
    let account = "--as=system:serviceaccount:default:echo";
    let answer = lab
        .kubectl(&["auth", "can-i", "list", "nodes", account])
        .await;
    assert!(answer.is_err(), "{answer:?}");
}

async fn is_started_again_when_killed(lab: &Lab) {
    let pod = ready_pod_on(lab, "edge-1").await;
    let before = restarts(&pod);
    assert_eq!(lab.kill(&pod.name_any(), Signal::SIGKILL).unwrap(), 1);
    let after = until("a restart", async || {
        let pod = pod_on(lab, "edge-1").await?;
        (restarts(&pod) == before + 1 && is_ready(&pod)).then_some(pod)
    })
    .await;
    assert_eq!(after.uid(), pod.uid());
    assert_eq!(get(lab, "cam-1", "edge-1", "/readyz").unwrap(), "ok");
    let status = &after.status.unwrap().container_statuses.unwrap()[0];
    let last = status.last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(last.exit_code, 137);
}

async fn stays_down_while_suspended(lab: &Lab) {
    lab.suspend_restart("edge-2", true).unwrap();
    lab.kill("edge-2", Signal::SIGTERM).unwrap();
    until("the pod being not ready", async || {
        pod_on(lab, "edge-2").await.filter(|pod| !is_ready(pod))
    })
    .await;
    tokio::time::sleep(2000 * MS).await;
    assert!(lab.kill("edge-2", Signal::SIGTERM).is_err());
    lab.suspend_restart("edge-2", false).unwrap();
    ready_pod_on(lab, "edge-2").await;
}

async fn is_replaced_when_deleted(lab: &Lab) {
    let pod = ready_pod_on(lab, "cam-2").await;
    let old_token = get(lab, "edge-1", "cam-2", TOKEN).unwrap();
    let pods = Api::<Pod>::namespaced(lab.client(), "default");
    pods.delete(&pod.name_any(), &DeleteParams::default())
        .await
        .unwrap();
    until("a new pod", async || {
        let new = pod_on(lab, "cam-2").await?;
        (new.uid() != pod.uid() && is_ready(&new)).then_some(())
    })
    .await;
    assert!(pods.get_opt(&pod.name_any()).await.unwrap().is_none());
    assert_ne!(get(lab, "edge-1", "cam-2", TOKEN).unwrap(), old_token);
}

async fn loses_readiness_when_its_probe_fails(lab: &Lab) {
    get(lab, "edge-1", "cam-1", "/unready").unwrap();
    until("the pod being not ready", async || {
        pod_on(lab, "cam-1").await.filter(|pod| !is_ready(pod))
    })
    .await;
    // It ends without an answer.
    assert!(get(lab, "edge-1", "cam-1", "/exit").is_err());
    let pod = ready_pod_on(lab, "cam-1").await;
    let status = &pod.status.unwrap().container_statuses.unwrap()[0];
    let last = status.last_state.clone().unwrap().terminated.unwrap();
    assert_eq!(last.exit_code, 3);
}

async fn is_cut_off_by_a_partition(lab: &Lab) {
    lab.partition("cam-1").unwrap();
    assert!(get(lab, "edge-1", "cam-1", "/readyz").is_err());
    lab.heal("cam-1").unwrap();
    until("an answer", async || {
        get(lab, "edge-1", "cam-1", "/readyz").ok()
    })
    .await;
    let carried = lab.counters()[&("edge-1".to_owned(), "cam-1".to_owned())];
    assert!(carried.drops > 0 && carried.bytes > 0, "{carried:?}");
}

async fn an_unknown_image_is_refused_by_name(lab: &Lab) {
    lab.kubectl(&[
        "run",
        "stranger",
        "--image=nobody/knows:1",
        "--restart=Never",
    ])
    .await
    .unwrap();
    let pods = Api::<Pod>::namespaced(lab.client(), "default");
    let message = until("a reason", async || {
        let pod = pods.get("stranger").await.unwrap();
        let statuses = pod.status?.container_statuses?;
        statuses[0].state.clone()?.waiting?.message
    })
    .await;
    assert!(message.contains("nobody/knows:1"), "{message}");
    lab.kubectl(&["delete", "pod", "stranger", "--timeout=20s"])
        .await
        .unwrap();
}

/// A host of a quarter of a processor gets a quarter, give or take a third: the kernel counts in
/// ticks nearly as long as a period, and overuse is only charged in the next one, so short work
/// shows little.
async fn a_host_is_as_slow_as_its_share(lab: &Lab) {
    let work = async |host: &str| {
        let script = "import time\nt = time.monotonic()\nn = 0\n\
                      while n < 12_000_000: n += 1\nprint(time.process_time(), time.monotonic() - t)";
        let mut command = lab.command(host, "python3").unwrap();
        let output = command.args(["-c", script]).output().await.unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let mut numbers = text.split_whitespace().map(|n| n.parse::<f64>().unwrap());
        let (processor, wall) = (numbers.next().unwrap(), numbers.next().unwrap());
        println!("{host}: {processor:.2} s of processor in {wall:.2} s");
        processor / wall
    };
    let share = work("cam-1").await;
    assert!((0.17..0.33).contains(&share), "{share}");
}
