//! The chart with every flag on and off, checked by helm and by a real API server.

use lamina_e2e::ApiServer;
use std::path::PathBuf;

const NAMESPACE: &str = "lamina-system";
/// Kinds of the Prometheus operator, which is not installed here.
const FOREIGN: &str = "monitoring.coreos.com/";

fn chart() -> PathBuf {
    let chart = std::env::var_os("LAMINA_CHART").unwrap_or_default();
    assert!(!chart.is_empty(), "no LAMINA_CHART: run `cargo xtask test`");
    PathBuf::from(chart)
}

/// Each set of values, its name first.
fn value_sets() -> Vec<(&'static str, Vec<String>)> {
    let file = |name: &str| {
        let path = chart().join("ci").join(name);
        vec!["--values".to_owned(), path.display().to_string()]
    };
    let set = |value: &str| vec!["--set".to_owned(), value.to_owned()];
    vec![
        ("default", Vec::new()),
        ("all", file("all-values.yaml")),
        ("bare", file("bare-values.yaml")),
        ("replicas", set("operator.replicas=2")),
        (
            "keys of everywhere",
            set("auth.mode=apiKey,auth.namespaces={*}"),
        ),
        ("tokens", set("auth.mode=token")),
        ("volume", set("operator.store.persistence.enabled=true")),
        (
            "kept elsewhere",
            set(
                "operator.store.persistence.enabled=true,operator.store.persistence.keep=false,operator.store.persistence.storageClass=fast",
            ),
        ),
        (
            "a bucket",
            set(
                "operator.replicas=2,operator.store.s3.bucket=lamina,operator.store.s3.prefix=site-1,operator.store.s3.endpoint=https://minio:9000,operator.store.s3.virtualHost=true,operator.store.s3.secretName=keys,operator.store.s3.caConfigMap=storage-ca",
            ),
        ),
        ("hostPort", set("agent.hostPort=8001")),
        ("restPort", set("agent.restPort=8080")),
        ("no REST", set("agent.restPort=0")),
        ("restHostPort", set("agent.restHostPort=8000")),
        ("certificates", set("tls.mode=auto")),
        ("no certificates", set("tls.mode=disabled")),
        (
            "a given authority",
            set("tls.mode=existingSecret,tls.existingSecret=issuer"),
        ),
        ("clients with TLS", set("agent.front.tls.mode=auto")),
        (
            "clients with TLS and names",
            set(
                "agent.front.tls.mode=auto,agent.service.enabled=false,agent.front.tls.names={*.cams.example,fd12::1}",
            ),
        ),
        (
            "clients with a given certificate",
            set("agent.front.tls.mode=secret,agent.front.tls.secretName=front"),
        ),
        (
            "Secrets of all namespaces",
            set("operator.sourceSecrets.namespaces={*}"),
        ),
        ("sources on claims", set("agent.sources.claims={models}")),
        (
            "hostPath",
            set("agent.cache.hostPath=/var/lib/lamina/cache"),
        ),
    ]
}

async fn render(server: &ApiServer, values: &[String]) -> Result<String, String> {
    let chart = chart().display().to_string();
    let mut arguments = vec!["template", "lamina", &chart, "--namespace", NAMESPACE];
    arguments.extend(values.iter().map(String::as_str));
    let text = server.tool("helm", &arguments, "").await;
    text.map_err(|error| error.to_string())
}

fn without_foreign_kinds(manifest: &str) -> String {
    let documents = manifest.split("\n---");
    let ours: Vec<&str> = documents.filter(|d| !d.contains(FOREIGN)).collect();
    ours.join("\n---")
}

const ACCOUNTS: [&str; 3] = ["apply", "--server-side", "--filename=-"];

/// The documents of one kind.
fn only(manifest: &str, kind: &str) -> String {
    let line = format!("\nkind: {kind}\n");
    let documents = manifest.split("\n---").filter(|d| d.contains(&line));
    documents.collect::<Vec<_>>().join("\n---")
}

#[tokio::test]
async fn an_api_server_takes_what_every_flag_renders() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(folder.path()).await.unwrap();
    // The last two are namespaces of keys in the file of all values.
    for namespace in [NAMESPACE, "lab", "shop"] {
        let create = ["create", "namespace", namespace];
        server.tool("kubectl", &create, "").await.unwrap();
    }
    for (name, values) in value_sets() {
        let rendered = render(&server, &values).await;
        let rendered = rendered.unwrap_or_else(|error| panic!("{name}: {error}"));
        let apply = [
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=strict",
            "--filename=-",
        ];
        let ours = without_foreign_kinds(&rendered);
        // A Pod is only accepted where its account exists.
        let accounts = only(&ours, "ServiceAccount");
        let made = server.tool("kubectl", &ACCOUNTS, &accounts).await;
        made.unwrap_or_else(|error| panic!("{name}: {error}"));
        let taken = server.tool("kubectl", &apply, &ours).await;
        let taken = taken.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(
            taken.contains("deployment.apps/lamina-operator"),
            "{name}: {taken}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn values_that_mean_nothing_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(folder.path()).await.unwrap();
    for value in [
        "agent.hostport=8001",
        "agent.port=80",
        "agent.restPort=80",
        "operator.image.digest=latest",
        "agent.cache.hostPath=relative",
        "agent.classes[0].name=default",
        "tls.mode=existingSecret",
        "tls.certificateHours=0",
        "agent.sources.hub=ftp://hub",
        "agent.sources.allow={loopback}",
        "logFormat=xml",
        "operator.store.persistence.accessMode=Often",
        "operator.store.putQuota=much",
        "operator.store.s3.endpoint=minio:9000",
        "operator.hosts.service.type=ClusterIP",
        "agent.listenAddress=everywhere",
        "auth.mode=key",
        "auth.namespaces={*,default}",
        "auth.requestsPerSecond=-1",
        "agent.front.tls.mode=secret",
        "agent.front.tls.mode=auto,tls.mode=disabled",
        "agent.front.tls.mode=auto,agent.front.tls.names={https://lamina}",
    ] {
        let values = ["--set".to_owned(), value.to_owned()];
        let refused = render(&server, &values).await.expect_err(value);
        assert!(refused.contains("schema"), "{value}: {refused}");
    }
    server.stop().await;
}

#[tokio::test]
async fn values_that_contradict_each_other_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(folder.path()).await.unwrap();
    for (values, said) in [
        (
            "operator.store.s3.bucket=lamina,operator.store.persistence.enabled=true",
            "is a bucket or a volume",
        ),
        (
            "operator.store.s3.bucket=lamina,operator.store.existingClaim=claim",
            "is a bucket or a volume",
        ),
        (
            "operator.hosts.service.enabled=true,tls.mode=disabled",
            "needs certificates",
        ),
        ("agent.port=8123,agent.restPort=8123", "each a port"),
    ] {
        let values = ["--set".to_owned(), values.to_owned()];
        let refused = render(&server, &values).await.expect_err(&values[1]);
        assert!(refused.contains(said), "{values:?}: {refused}");
    }
    server.stop().await;
}

#[tokio::test]
async fn the_port_for_http_goes_with_its_value() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(folder.path()).await.unwrap();
    let policy = ["--set", "networkPolicy.enabled=true"].map(str::to_owned);
    let with = async |value: &str| {
        let port = ["--set".to_owned(), format!("agent.restPort={value}")];
        render(&server, &[&policy[..], &port].concat())
            .await
            .unwrap()
    };
    let rendered = with("8123").await;
    for place in [
        "- --rest-port=8123",
        "containerPort: 8123",
        "{name: rest, port: 8123, targetPort: rest",
        "- ports: [{port: rest}]",
    ] {
        assert!(rendered.contains(place), "{place}");
    }
    let rendered = with("0").await;
    assert!(rendered.contains("- --rest-port=0"), "the agent is told");
    for place in ["name: rest", "port: rest"] {
        assert!(!rendered.contains(place), "{place}");
    }
    server.stop().await;
}

/// Kind, component and content of every rendered object.
async fn objects(
    server: &ApiServer,
    values: &str,
) -> Result<Vec<serde_json::Value>, Box<dyn std::error::Error>> {
    let values = ["--set".to_owned(), values.to_owned()];
    let rendered = without_foreign_kinds(&render(server, &values).await?);
    let read = ["apply", "--dry-run=client", "--output=json", "--filename=-"];
    let list = server.tool("kubectl", &read, &rendered).await?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

const COMPONENT: &str = "app.kubernetes.io/component";

/// Names of the ports that pods of a component listen on, and of those that its policy opens, with
/// the number of kinds of peers.
fn ports(objects: &[serde_json::Value], component: &str) -> [Vec<(String, usize)>; 2] {
    let of = |kinds: &[&str], at: &str| {
        let is_it = |o: &&serde_json::Value| {
            let labels = o.pointer(at).and_then(|labels| labels[COMPONENT].as_str());
            kinds.iter().any(|kind| o["kind"] == *kind) && labels == Some(component)
        };
        objects.iter().filter(is_it).cloned().collect::<Vec<_>>()
    };
    let list = |value: &serde_json::Value| value.as_array().cloned().unwrap_or_default();
    let name = |port: &serde_json::Value, key: &str| port[key].as_str().unwrap_or("?").to_owned();
    let workloads = of(
        &["DaemonSet", "Deployment"],
        "/spec/template/metadata/labels",
    );
    let containers = workloads
        .iter()
        .flat_map(|w| list(&w["spec"]["template"]["spec"]["containers"]));
    let mut listens: Vec<_> = containers
        .flat_map(|c| list(&c["ports"]))
        .map(|port| (name(&port, "name"), 0))
        .collect();
    let policies = of(&["NetworkPolicy"], "/spec/podSelector/matchLabels");
    let rules = policies.iter().flat_map(|p| list(&p["spec"]["ingress"]));
    let mut reached: Vec<_> = rules
        .flat_map(|rule| {
            let peers = list(&rule["from"]).len();
            let ports = list(&rule["ports"]).into_iter();
            ports.map(move |port| (port["port"].as_str().unwrap_or("?").to_owned(), peers))
        })
        .collect();
    listens.sort();
    reached.sort();
    [listens, reached]
}

#[tokio::test]
async fn the_network_policy_lets_every_port_be_reached_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(folder.path()).await.unwrap();
    let on = "networkPolicy.enabled=true";
    let restricted = format!(
        "{on},networkPolicy.clientsFrom[0].namespaceSelector.matchLabels.a=b,networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.a=b"
    );
    let without_http = format!("{on},agent.restPort=0,agent.front.tls.mode=auto");
    let with_hosts = format!("{on},operator.hosts.from[0].ipBlock.cidr=192.0.2.0/24");
    // For clients or monitoring, and for agents: a port open to all has no list.
    let named = |ports: &[(&str, usize)]| -> Vec<(String, usize)> {
        ports
            .iter()
            .map(|(n, peers)| ((*n).to_owned(), *peers))
            .collect()
    };
    for (values, agent, operator) in [
        (
            on.to_owned(),
            named(&[("admin", 0), ("inference", 0), ("rest", 0)]),
            named(&[("admin", 0), ("control", 1)]),
        ),
        (
            restricted,
            named(&[("admin", 1), ("inference", 2), ("rest", 2)]),
            named(&[("admin", 1), ("control", 1)]),
        ),
        (
            without_http,
            named(&[("admin", 0), ("inference", 0)]),
            named(&[("admin", 0), ("control", 1)]),
        ),
        (
            with_hosts,
            named(&[("admin", 0), ("inference", 0), ("rest", 0)]),
            named(&[("admin", 0), ("control", 2)]),
        ),
    ] {
        let objects = objects(&server, &values).await.unwrap();
        for (component, expected) in [("agent", agent), ("operator", operator)] {
            let [listens, reached] = ports(&objects, component);
            assert_eq!(reached, expected, "{component} with {values}");
            let names = |ports: &[(String, usize)]| -> Vec<String> {
                ports.iter().map(|(name, _)| name.clone()).collect()
            };
            assert_eq!(
                names(&listens),
                names(&reached),
                "{component} with {values}"
            );
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn agents_come_to_tainted_nodes_where_they_are_told_alone() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(folder.path()).await.unwrap();
    let tolerated = async |values: &str| {
        let objects = objects(&server, values).await.unwrap();
        let agents = objects.iter().find(|o| o["kind"] == "DaemonSet").cloned();
        agents.unwrap()["spec"]["template"]["spec"]["tolerations"].clone()
    };
    assert!(tolerated("logLevel=info").await.is_null());
    let all = tolerated("agent.tolerations[0].operator=Exists").await;
    assert_eq!(all, serde_json::json!([{"operator": "Exists"}]));
    server.stop().await;
}

#[tokio::test]
async fn agents_and_operator_hear_the_same_of_clients_with_tls() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(folder.path()).await.unwrap();
    let with = async |values: &str| {
        let values = ["--set".to_owned(), values.to_owned()];
        render(&server, &values).await.unwrap()
    };
    let auto = with("agent.front.tls.mode=auto,agent.front.tls.names={cams.example}").await;
    let names = "--front-names=lamina,lamina.lamina-system,lamina.lamina-system.svc,lamina.lamina-system.svc.cluster.local,cams.example";
    assert_eq!(auto.matches(names).count(), 2);
    for place in [
        "- --front-tls=auto\n",
        "- --front-tls\n",
        "- --tls\n",
        "appProtocol: https",
    ] {
        assert!(auto.contains(place), "{place}");
    }
    assert!(!auto.contains("h2c") && !auto.contains("--front-tls-optional"));
    let given = with("agent.front.tls.mode=secret,agent.front.tls.secretName=front,agent.front.tls.required=false").await;
    for place in [
        "- --front-tls=given\n",
        "- --front-tls-optional\n",
        "secretName: front\n",
        "{name: front, mountPath: /var/run/lamina/front, readOnly: true}",
        "- --tls\n",
    ] {
        assert!(given.contains(place), "{place}");
    }
    assert!(!given.contains("--front-names"));
    let none = with("agent.front.tls.mode=none").await;
    assert!(!none.contains("--front-") && none.contains("h2c"));
    server.stop().await;
}

#[tokio::test]
async fn the_operator_reads_secrets_only_where_it_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(folder.path()).await.unwrap();
    let with = async |namespaces: &str| {
        let value = format!("operator.sourceSecrets.namespaces=[{namespaces}]");
        let values = ["--set-json".to_owned(), value];
        let rendered = render(&server, &values).await.unwrap();
        let documents = rendered.split("\n---").map(str::to_owned);
        documents
            // It knows the name of the Secret of its certificates.
            .filter(|document| document.contains("resources: [secrets]\n    verbs"))
            .collect::<Vec<_>>()
    };
    assert!(with("").await.is_empty());
    let some = with(r#""team", "other""#).await;
    assert_eq!(some.len(), 2);
    for (role, namespace) in some.iter().zip(["team", "other"]) {
        assert!(role.contains("kind: Role\n"), "{role}");
        assert!(
            role.contains(&format!("namespace: {namespace}\n")),
            "{role}"
        );
        assert!(role.contains("verbs: [get]"), "{role}");
    }
    let all = with(r#""*""#).await;
    assert_eq!(all.len(), 1);
    assert!(all[0].contains("kind: ClusterRole\n"), "{}", all[0]);
    server.stop().await;
}

#[tokio::test]
async fn the_selftest_shows_what_clients_have_to() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(folder.path()).await.unwrap();
    let with = async |values: &str| {
        let values = ["--set".to_owned(), values.to_owned()];
        let rendered = render(&server, &values).await.unwrap();
        let ours = |document: &&str| document.contains("/component: selftest\n");
        let documents: Vec<String> = rendered
            .split("\n---")
            .filter(ours)
            .map(str::to_owned)
            .collect();
        let text = documents.join("\n---");
        let keys = only(&text, "Secret");
        (text, keys)
    };
    let (open, keys) = with("auth.mode=none").await;
    assert!(!open.contains("--credentials") && keys.is_empty(), "{open}");
    let (token, keys) = with("auth.mode=token,auth.tokenAudience=models").await;
    assert!(token.contains("--credentials=/var/run/secrets/lamina/token"));
    assert!(token.contains("audience: models,") && keys.is_empty());
    // A key for the namespace of the model, and the same for the pod.
    let (apart, keys) = with("auth.mode=apiKey,auth.namespaces={shop}").await;
    assert!(apart.contains("- --namespace=shop\n"), "{apart}");
    let values: Vec<&str> = keys
        .lines()
        .filter_map(|line| line.trim().strip_prefix("key: "))
        .collect();
    assert_eq!(values.len(), 2);
    assert_eq!(values[0], values[1]);
    assert_eq!(
        keys.matches("serving.lamina.dev/api-key: \"true\"").count(),
        1
    );
    let (here, keys) = with("auth.mode=apiKey,auth.namespaces={shop,lamina-system}").await;
    assert!(here.contains("- --namespace=lamina-system\n"), "{here}");
    assert_eq!(keys.matches("kind: Secret").count(), 1);
    server.stop().await;
}

#[tokio::test]
async fn two_operators_change_sooner_than_one_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(folder.path()).await.unwrap();
    let with = async |count: &str| {
        let values = ["--set".to_owned(), format!("operator.replicas={count}")];
        render(&server, &values).await.unwrap()
    };
    assert!(!with("1").await.contains("--lease-seconds"));
    assert!(with("2").await.contains("- --lease-seconds=17\n"));
    server.stop().await;
}

#[tokio::test]
async fn classes_share_no_node() {
    let folder = tempfile::tempdir().unwrap();
    let server = ApiServer::start(folder.path()).await.unwrap();
    let (_, values) = value_sets().swap_remove(1);
    let rendered = render(&server, &values).await.unwrap();
    let sets: Vec<&str> = rendered
        .split("\n---")
        .filter(|document| document.contains("kind: DaemonSet"))
        .collect();
    assert_eq!(sets.len(), 3);
    let refusals = |set: &str| set.matches("operator: NotIn").count();
    let mut all: Vec<usize> = sets.into_iter().map(refusals).collect();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2], "each class leaves out those before it");
    server.stop().await;
}

#[test]
fn every_value_is_described() {
    fn walk(schema: &serde_json::Value, path: &str, lacking: &mut Vec<String>) {
        let properties = schema["properties"].as_object();
        for (name, value) in properties.into_iter().flatten() {
            let path = format!("{path}.{name}");
            if value["description"].as_str().is_none_or(str::is_empty) {
                lacking.push(path.clone());
            }
            walk(value, &path, lacking);
            walk(&value["items"], &path, lacking);
        }
    }
    let text = std::fs::read_to_string(chart().join("values.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut lacking = Vec::new();
    walk(&schema, "", &mut lacking);
    assert!(lacking.is_empty(), "{lacking:?}");
}
