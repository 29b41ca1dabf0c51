//! Additional messages in the session of a host that is not a Node: its wish, the authorities to
//! trust, and its report.

use crate::hosts::Hosts;
use crate::identity::Identity;
use lamina_proto::control::operator_message::Message as Order;
use lamina_proto::control::{Authorities, HostWish, OperatorMessage};
use tokio::sync::watch;

/// What was sent to one host.
pub(super) struct HostSession {
    hosts: Hosts,
    identity: Option<Identity>,
    changed: watch::Receiver<()>,
    name: String,
    address: String,
    wish: Option<Vec<u8>>,
    authorities: String,
    /// There may be changes that were not checked.
    is_due: bool,
}

impl HostSession {
    /// For the host `name` at `address`, to which nothing was sent so far.
    pub(super) fn new(hosts: Hosts, identity: Option<Identity>, name: &str, address: &str) -> Self {
        Self {
            changed: hosts.subscribe(),
            hosts,
            identity,
            name: name.to_owned(),
            address: address.to_owned(),
            wish: None,
            authorities: String::new(),
            is_due: true,
        }
    }

    /// Returns when something may have changed.
    pub(super) async fn changed(&mut self) {
        if !self.is_due {
            // The sender lives as long as `hosts`.
            let _ = self.changed.changed().await;
            self.is_due = true;
        }
    }

    /// The next message for the host, if there is one.
    pub(super) fn news(&mut self) -> Option<OperatorMessage> {
        let message = self.next();
        self.is_due = message.is_some();
        message.map(|message| OperatorMessage {
            message: Some(message),
        })
    }

    fn next(&mut self) -> Option<Order> {
        let authorities = self.identity.as_ref().map(Identity::bundle);
        let authorities = authorities.unwrap_or_default();
        if authorities != self.authorities {
            self.authorities.clone_from(&authorities);
            return Some(Order::Authorities(Authorities { pem: authorities }));
        }
        let wish = self.hosts.wish(&self.name)?;
        if self.wish.as_ref() == Some(&wish) {
            return None;
        }
        self.wish = Some(wish.clone());
        Some(Order::Wish(HostWish {
            compute_node_json: wish.into(),
        }))
    }

    /// Handles a report of the host.
    pub(super) fn report(&self, json: &[u8]) {
        self.hosts.report(&self.name, &self.address, json);
    }
}
