use super::*;
use crate::state::snapshot::{About, Need};
use crate::testing::question;
use lamina_placement::Status;
use lamina_plugin_host::PluginConfig;
use tokio::net::TcpListener;

fn key() -> PlacementKey {
    PlacementKey::new("model-uid", "cam-1")
}

fn ask(strategy: &str) -> Ask {
    Ask {
        key: key(),
        about: About {
            strategy: strategy.into(),
            generation: 3,
            manifest: String::new(),
            revision: 0,
        },
        need: Need::First,
        question: Arc::new(question(strategy)),
    }
}

fn desk(address: String, timeout_seconds: f64) -> Desk {
    let plugins = Plugins::new(vec![PluginConfig {
        name: "mine".into(),
        address,
        timeout_seconds,
    }]);
    Desk::new(plugins.unwrap())
}

#[tokio::test]
async fn the_answer_in_a_plugins_place_wakes_the_loop() {
    // Bound and dropped, so the port is closed.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let desk = desk(address, 5.0);
    desk.ask(ask("plugin/mine"));
    assert_eq!(desk.views()[&key()].answer, None);
    desk.answered().await;
    let question = desk.views().remove(&key()).unwrap();
    assert_eq!(
        (question.about.strategy.as_str(), question.about.generation),
        ("plugin/mine", 3)
    );
    let answer = question.answer.unwrap();
    let solution = answer.solution.clone().unwrap();
    assert_eq!(solution.strategy, "optimal");
    assert_eq!(solution.certificate.status, Status::Optimal);
    let remark = answer.remark.clone().unwrap();
    assert_eq!((remark.kind, remark.fell_back), ("Unreachable", true));
    assert!(
        remark
            .text
            .starts_with("strategy plugin/mine fell back to optimal: ")
    );
    desk.forget(&key());
    assert_eq!(desk.views(), BTreeMap::new());
}

#[tokio::test]
async fn a_question_that_nobody_waits_for_any_more_is_hung_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let desk = desk(format!("http://{}", listener.local_addr().unwrap()), 60.0);
    desk.ask(ask("plugin/mine"));
    let (mut call, _) = listener.accept().await.unwrap();
    desk.forget(&key());
    // Reads the client's bytes, then the end of the connection.
    let mut sent = Vec::new();
    let end = tokio::io::AsyncReadExt::read_to_end(&mut call, &mut sent).await;
    assert!(end.is_ok_and(|bytes| bytes == sent.len()));
    assert_eq!(desk.views(), BTreeMap::new());
}

#[tokio::test]
async fn the_most_urgent_question_is_solved_first() {
    let shared = Shared::default();
    for (number, need) in [
        (1, Need::Period),
        (2, Need::Leave),
        (3, Need::Change),
        (4, Need::Leave),
    ] {
        let key = PlacementKey::new(&format!("model-{number}"), "cam-1");
        let mut ask = ask("optimal");
        ask.need = need;
        let mut open = shared.lock();
        open.waiting.push("default", need, number, key.clone());
        let view = QuestionView {
            about: ask.about,
            need,
            answer: None,
            ahead: None,
        };
        let asked = Asked {
            number,
            view,
            question: ask.question,
            call: None,
        };
        open.questions.insert(key, asked);
    }
    let order: Vec<u64> = (0..4).map(|_| shared.next().unwrap().1).collect();
    assert_eq!(order, [2, 4, 3, 1]);
}

#[tokio::test]
async fn an_answer_wakes_the_loop_only_where_somebody_waits_for_it() {
    let desk = Desk::new(Plugins::default());
    let asked = |need, model: &str| {
        let mut ask = ask("optimal");
        ask.need = need;
        ask.key = PlacementKey::new(model, "cam-1");
        desk.ask(ask.clone());
        ask.key
    };
    let now_and_then = asked(Need::Period, "calm");
    while desk.views()[&now_and_then].answer.is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let woken = tokio::time::timeout(Duration::from_millis(20), desk.answered());
    assert!(woken.await.is_err(), "nobody waits for it");
    asked(Need::Change, "news");
    desk.answered().await;
}

#[test]
fn models_that_are_asked_for_at_once_do_not_all_choose_the_same_free_host() {
    let shared = Shared::default();
    // Each takes 16 % of the cloud's time per request per second.
    let mut one = question("optimal");
    one.rate_per_second = 5.0;
    let one = Arc::new(one);
    let keys: Vec<PlacementKey> = (1..=3)
        .map(|number| PlacementKey::new(&format!("model-{number}"), "cam-1"))
        .collect();
    for (number, key) in (1..).zip(&keys) {
        let mut open = shared.lock();
        let ask = ask("optimal");
        open.waiting.push("default", ask.need, number, key.clone());
        let asked = Asked {
            number,
            view: QuestionView {
                about: ask.about,
                need: ask.need,
                answer: None,
                ahead: None,
            },
            question: Arc::clone(&one),
            call: None,
        };
        open.questions.insert(key.clone(), asked);
    }
    let mut shares = Vec::new();
    for _ in &keys {
        let (key, number, question) = shared.next().unwrap();
        shares.push(question.host_share_of_others("cloud-1"));
        let ctx = Ctx::until(Instant::now() + SOLVE_TIME);
        let answer = super::solve(&question, &ctx);
        shared.take(&key, number, Reply::Answer(Arc::new(answer)));
    }
    assert!(shares[0].abs() < 1e-9 && shares[1] > 0.05, "{shares:?}");
    // A question whose answer was taken holds nothing any more: its plan does.
    let mut open = shared.lock();
    let reserved = |open: &Open| {
        let question = open.in_turn(&keys[2], &one);
        question.host_share_of_others("cloud-1")
    };
    let before = reserved(&open);
    open.questions.remove(&keys[0]);
    assert!(reserved(&open) < before);
}
