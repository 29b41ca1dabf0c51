//! Against an API server of a few lines.

use super::*;
use http::header::AUTHORIZATION;
use http::{Request, Response, StatusCode};
use k8s_openapi::api::core::v1::{HostIP, PodIP, PodSpec, PodStatus};
use kube::client::Body;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const USER: &str = "system:serviceaccount:lamina:lamina-agent";

fn review(user: &str, node: Option<&str>) -> TokenReviewStatus {
    let extra = node.map(|node| {
        [
            (NODE_NAME_EXTRA, node),
            (POD_NAME_EXTRA, "lamina-agent-x"),
            (POD_UID_EXTRA, "uid-1"),
        ]
        .map(|(key, value)| (key.to_owned(), vec![value.to_owned()]))
    });
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: Some(vec![CONTROL_AUDIENCE.to_owned()]),
        user: Some(UserInfo {
            username: Some(user.to_owned()),
            extra: Some(extra.into_iter().flatten().collect()),
            ..UserInfo::default()
        }),
        ..TokenReviewStatus::default()
    }
}

#[test]
fn a_pods_token_names_its_node_and_its_pod() {
    let agent = agent_of(&review(USER, Some("cam-1")), USER).unwrap();
    assert_eq!(
        (
            agent.node.as_str(),
            agent.pod.as_str(),
            agent.pod_uid.as_str()
        ),
        ("cam-1", "lamina-agent-x", "uid-1")
    );
}

#[test]
fn only_the_agents_account_for_this_audience_bound_to_a_pod_is_let_in() {
    let error = |status: TokenReviewStatus| agent_of(&status, USER).unwrap_err();
    assert_eq!(error(review(USER, None)), Refusal::NotBound);
    let others = [
        // Another account of the operator's own namespace.
        "system:serviceaccount:lamina:default",
        "system:serviceaccount:lamina:lamina-agent-2",
        // A namespace whose name begins with ours is a different one.
        "system:serviceaccount:lamina-2:lamina-agent",
        "system:node:cam-1",
    ];
    for other in others {
        let refused = error(review(other, Some("cam-1")));
        assert!(matches!(refused, Refusal::OtherUser { .. }), "{other}");
    }
    for audiences in [
        None,
        Some(vec!["https://kubernetes.default.svc".to_owned()]),
    ] {
        let foreign = TokenReviewStatus {
            audiences,
            ..review(USER, Some("cam-1"))
        };
        assert_eq!(error(foreign), Refusal::OtherAudience);
    }
    let expired = TokenReviewStatus {
        authenticated: Some(false),
        error: Some("token has expired".into()),
        ..review(USER, Some("cam-1"))
    };
    assert!(error(expired).to_string().contains("token has expired"));
    let nothing = error(TokenReviewStatus::default());
    assert!(matches!(nothing, Refusal::Rejected(_)));
}

#[test]
fn the_address_is_the_one_of_just_that_pod() {
    let agent = agent_of(&review(USER, Some("cam-1")), USER).unwrap();
    let pod = |uid: &str, node: &str, ips: &[&str]| {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        pod.spec = Some(PodSpec {
            node_name: Some(node.to_owned()),
            ..PodSpec::default()
        });
        let ips = ips.iter().map(|ip| PodIP {
            ip: (*ip).to_owned(),
        });
        pod.status = Some(PodStatus {
            pod_ips: Some(ips.collect()),
            host_ips: Some(vec![HostIP {
                ip: "192.0.2.7".to_owned(),
            }]),
            ..PodStatus::default()
        });
        pod
    };
    let known = |pod: &Pod| addresses(pod, &agent);
    let both = known(&pod("uid-1", "cam-1", &["10.0.0.7", "fd00::7"])).unwrap();
    let expected: [IpAddr; 2] = ["10.0.0.7", "fd00::7"].map(|ip| ip.parse().unwrap());
    assert_eq!(both.pod, expected);
    let host: IpAddr = "192.0.2.7".parse().unwrap();
    assert_eq!(both.host, [host]);
    assert!(known(&pod("uid-1", "cam-1", &[])).unwrap().pod.is_empty());
    assert_eq!(known(&pod("uid-2", "cam-1", &["10.0.0.7"])), None);
    assert_eq!(known(&pod("uid-1", "cam-2", &["10.0.0.7"])), None);
}

/// Gives each review the configured answer, and counts them.
#[derive(Clone)]
struct Server {
    answer: Arc<Mutex<Option<TokenReviewStatus>>>,
    asked: Arc<AtomicU32>,
}

impl Server {
    fn new(answer: Option<TokenReviewStatus>) -> (Self, TokenReviews) {
        let server = Self {
            answer: Arc::new(Mutex::new(answer)),
            asked: Arc::default(),
        };
        let answering = server.clone();
        let service = tower::service_fn(move |_: Request<Body>| {
            let answering = answering.clone();
            async move { Ok::<_, std::convert::Infallible>(answering.reply()) }
        });
        let client = Client::new(service, "lamina");
        (server, TokenReviews::new(client, "lamina", "lamina-agent"))
    }

    fn set(&self, answer: Option<TokenReviewStatus>) {
        *self.answer.lock().unwrap() = answer;
    }

    fn reply(&self) -> Response<Body> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = self.answer.lock().unwrap().clone();
        let (status, body): (StatusCode, Value) = match answer {
            Some(status) => (StatusCode::CREATED, json!({"spec": {}, "status": status})),
            None => (
                StatusCode::INTERNAL_SERVER_ERROR,
                json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                    "message": "etcd is away", "reason": "InternalError", "code": 500,
                }),
            ),
        };
        let body = Body::from(serde_json::to_vec(&body).unwrap());
        Response::builder().status(status).body(body).unwrap()
    }

    fn asked(&self) -> u32 {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

fn headers(token: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
    headers
}

async fn authenticate(
    auth: &TokenReviews,
    headers: &HeaderMap,
    from: Option<IpAddr>,
) -> Result<Caller, AuthError> {
    let call = Call {
        headers,
        from,
        peer: None,
        enrolls: false,
    };
    auth.authenticate(&call).await
}

#[tokio::test]
async fn bad_tokens_cost_the_api_server_little() {
    let (server, auth) = Server::new(Some(TokenReviewStatus::default()));
    let from: Option<IpAddr> = Some("10.0.0.66".parse().unwrap());
    let mut too_many = 0;
    for n in 0..300 {
        let garbage = headers(&format!("garbage-{n}"));
        let error = authenticate(&auth, &garbage, from).await.unwrap_err();
        assert!(matches!(error, AuthError::Malformed), "{error}");
    }
    assert_eq!(server.asked(), 0, "what has not even the form");
    for n in 0..300 {
        let made_up = headers(&format!("a.b{n}.c"));
        let error = authenticate(&auth, &made_up, from).await.unwrap_err();
        too_many += u32::from(matches!(error, AuthError::TooMany));
    }
    let asked = server.asked();
    assert!(asked < 15, "{asked}");
    assert_eq!(asked + too_many, 300);
    let other: Option<IpAddr> = Some("10.0.0.7".parse().unwrap());
    for _ in 0..3 {
        let again = authenticate(&auth, &headers("a.z.c"), other).await;
        assert!(matches!(again, Err(AuthError::Refused(_))));
    }
    assert_eq!(server.asked(), 1, "the same bad token is reviewed once");
}

#[tokio::test]
async fn bad_tokens_that_come_at_once_are_asked_about_no_more_than_others() {
    let (server, auth) = Server::new(Some(TokenReviewStatus::default()));
    let from: Option<IpAddr> = Some("10.0.0.66".parse().unwrap());
    let all: Vec<HeaderMap> = (0..3000).map(|n| headers(&format!("a.b{n}.c"))).collect();
    let all = all.iter().map(|bad| authenticate(&auth, bad, from));
    for answer in futures::future::join_all(all).await {
        answer.unwrap_err();
    }
    let asked = server.asked();
    assert!(asked < 50, "{asked}");
    // A host that shows its certificate is asked about from the same address.
    server.set(Some(review(USER, Some("cam-1"))));
    let (fresh, peer) = (headers("a.b.c"), Peer::from("cam-1"));
    let call = Call {
        headers: &fresh,
        from,
        peer: Some(&peer),
        enrolls: false,
    };
    let caller = auth.authenticate(&call).await.unwrap();
    assert_eq!(caller.node(), Some("cam-1"));
}

#[tokio::test]
async fn a_good_token_is_known_while_the_api_server_is_away_and_no_longer_once_it_ran_out() {
    let (server, auth) = Server::new(Some(review(USER, Some("cam-1"))));
    let caller = authenticate(&auth, &headers("a.b.c"), None).await.unwrap();
    assert_eq!(caller.node(), Some("cam-1"));
    authenticate(&auth, &headers("a.b.c"), None).await.unwrap();
    assert_eq!(server.asked(), 1);
    server.set(None);
    auth.again(&caller).await.unwrap();
    assert!(server.asked() >= 1, "it was asked, and is away");
    server.set(Some(TokenReviewStatus {
        error: Some("token has expired".into()),
        ..TokenReviewStatus::default()
    }));
    let error = auth.again(&caller).await.unwrap_err();
    assert!(matches!(error, AuthError::Refused(Refusal::Rejected(_))));
    let error = authenticate(&auth, &headers("a.b.c"), None).await;
    assert!(error.is_err(), "it is forgotten");
}
