//! Resolves server names once, and only to addresses that sources may have: the connection
//! uses the address that was checked.

use super::addresses::{AddressRules, DeniedAddress};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::SocketAddr;
use std::sync::Arc;

/// Uses the system's resolver.
#[derive(Debug, Clone)]
pub(super) struct CheckedNames(pub Arc<AddressRules>);

impl Resolve for CheckedNames {
    fn resolve(&self, name: Name) -> Resolving {
        let rules = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = allowed(&rules, found)?;
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Those of `found` that are allowed.
///
/// # Errors
/// There are some, but none is allowed.
fn allowed(
    rules: &AddressRules,
    found: impl Iterator<Item = SocketAddr>,
) -> Result<Vec<SocketAddr>, DeniedAddress> {
    let mut denied = None;
    let mut fine = Vec::new();
    for address in found {
        match rules.check(address.ip()) {
            Ok(()) => fine.push(address),
            Err(why) => denied = Some(why),
        }
    }
    match denied {
        Some(why) if fine.is_empty() => Err(why.of_name()),
        _ => Ok(fine),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_of_this_machine_leads_nowhere() {
        let names = CheckedNames(Arc::default());
        let Err(error) = names.resolve("localhost".parse().unwrap()).await else {
            panic!("resolved");
        };
        let denied = error.downcast::<DeniedAddress>().unwrap();
        assert!(denied.is_of_name);
        assert!(
            denied
                .to_string()
                .starts_with("the name leads to a loopback"),
            "{denied}"
        );
    }

    #[test]
    fn only_checked_addresses_are_left_of_several() {
        let found = ["10.0.0.1:0", "127.0.0.1:0", "[::1]:0"].map(|a| a.parse().unwrap());
        let left = allowed(&AddressRules::default(), found.into_iter()).unwrap();
        assert_eq!(left, ["10.0.0.1:0".parse().unwrap()]);
    }
}
