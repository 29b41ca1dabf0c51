//! Client keys: from labelled Secrets, hashed, to every agent.
//!
//! Only Secrets with the label are requested, and only in the configured namespaces; only
//! hashes of keys leave this module.

mod secret;
mod told;

use crate::kube::publish::Publisher;
use crate::kube::watch::{Copies, keep};
use crate::world::World;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher::Config;
use kube::{Api, Client};
use secret::{Gathered, LABEL, gather};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use told::{AGAIN, Told};

/// Means every namespace.
const EVERYWHERE: &str = "*";
/// A watch is renewed after this time, which finds connections that died unnoticed.
const WATCH_SECONDS: u32 = 60;
/// Changes come in bursts.
const PAUSE: Duration = Duration::from_millis(100);

/// Gives `world` the keys of `namespaces`, now and whenever they change; never returns. While this
/// process `leads`, mistakes in them are reported in Events, which name it `reporter`.
pub(crate) async fn follow(
    client: Client,
    namespaces: &[String],
    world: World,
    reporter: String,
    mut leads: watch::Receiver<bool>,
) {
    let publisher = Publisher::new(client.clone(), reporter);
    let changed = Arc::new(Notify::new());
    let config = Config::default().timeout(WATCH_SECONDS).labels(LABEL);
    let mut copies: Vec<Arc<Copies<Secret>>> = Vec::new();
    let mut watches = FuturesUnordered::new();
    for namespace in namespaces {
        let api = if namespace == EVERYWHERE {
            Api::all(client.clone())
        } else {
            Api::namespaced(client.clone(), namespace)
        };
        let copy = Arc::new(Copies::default());
        let kept = Arc::clone(&copy);
        watches.push(keep(api, config.clone(), kept, Arc::clone(&changed)));
        copies.push(copy);
    }
    let tell = async {
        let mut told = Told::default();
        loop {
            let woken = async {
                tokio::select! {
                    () = changed.notified() => {}
                    // Without a sender there is no leader any more.
                    Ok(()) = leads.changed() => {}
                }
            };
            // Or uncorrected mistakes are reported again.
            let _ = timeout(AGAIN, woken).await;
            tokio::time::sleep(PAUSE).await;
            // A key in another namespace must not count as unknown.
            let all: Option<Vec<_>> = copies.iter().map(|copy| copy.all()).collect();
            let Some(all) = all else { continue };
            let Gathered { keys, mistakes } = gather(all.concat());
            world.set_keys(keys);
            if *leads.borrow() {
                for notice in told.news(&mistakes, Instant::now()) {
                    publisher.tell(notice);
                }
            }
        }
    };
    tokio::select! {
        () = async { while watches.next().await.is_some() {} } => {}
        () = tell => {}
    }
}
