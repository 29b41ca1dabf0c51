//! Calls of the chart's pods at the API server, and their rights: from its audit log and from the
//! chart's roles.

use k8s_openapi::api::rbac::v1::{
    ClusterRole, ClusterRoleBinding, PolicyRule, Role, RoleBinding, Subject,
};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::Path;

/// Every call of a ServiceAccount of the chart's namespace, without contents.
pub const AUDIT_POLICY: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    userGroups: ["system:serviceaccounts:lamina-system"]
  - level: None
"#;

/// A call, or the right to it, by user and kind of object.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// `system:serviceaccount:NAMESPACE:NAME`.
    pub user: String,
    /// Such as `patch`.
    pub verb: String,
    /// API group; empty for the core group.
    pub group: String,
    /// With its subresource, such as `computenodes/status`.
    pub resource: String,
}

/// The calls in a log.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Answered calls.
    pub answered: BTreeSet<Right>,
    /// Calls refused for lack of rights.
    pub refused: BTreeSet<Right>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    verb: String,
    user: User,
    object_ref: Option<Object>,
    response_status: Option<Status>,
}

#[derive(Deserialize)]
struct User {
    username: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Object {
    resource: Option<String>,
    subresource: Option<String>,
    api_group: Option<String>,
}

#[derive(Deserialize)]
struct Status {
    code: Option<i32>,
}

impl Entry {
    fn read(line: &str) -> Option<Self> {
        // The last line may be incomplete.
        serde_json::from_str(line).ok()
    }
}

/// How many calls of `log` `user`, a ServiceAccount of the chart's namespace, made of a kind of
/// object, such as `tokenreviews`.
///
/// # Errors
/// The log cannot be read.
pub fn count(log: &Path, user: &str, resource: &str) -> io::Result<usize> {
    let mut count = 0;
    for line in BufReader::new(File::open(log)?).lines() {
        let is_it = Entry::read(&line?).is_some_and(|entry| {
            let is_theirs = entry.user.username.rsplit(':').next() == Some(user);
            let object = entry.object_ref.and_then(|object| object.resource);
            is_theirs && object.as_deref() == Some(resource)
        });
        count += usize::from(is_it);
    }
    Ok(count)
}

impl Calls {
    /// Reads the calls in `log`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(log: &Path) -> io::Result<Self> {
        let mut calls = Self::default();
        for line in BufReader::new(File::open(log)?).lines() {
            calls.add(&line?);
        }
        Ok(calls)
    }

    fn add(&mut self, line: &str) {
        let Some(entry) = Entry::read(line) else {
            return;
        };
        let Some(object) = entry.object_ref else {
            return;
        };
        let resource = object.resource.unwrap_or_default();
        let right = Right {
            user: entry.user.username,
            verb: entry.verb,
            group: object.api_group.unwrap_or_default(),
            resource: match object.subresource {
                Some(sub) => format!("{resource}/{sub}"),
                None => resource,
            },
        };
        let code = entry.response_status.and_then(|status| status.code);
        if code == Some(403) {
            self.refused.insert(right);
        } else {
            self.answered.insert(right);
        }
    }
}

/// The rights in the roles of the chart's release.
///
/// # Errors
/// The API server does not answer.
pub async fn granted(client: &Client, release: &str) -> kube::Result<BTreeSet<Right>> {
    let chart = ListParams::default().labels(&format!("app.kubernetes.io/instance={release}"));
    let cluster_roles: Api<ClusterRole> = Api::all(client.clone());
    let roles: Api<Role> = Api::all(client.clone());
    let everywhere: Api<ClusterRoleBinding> = Api::all(client.clone());
    let somewhere: Api<RoleBinding> = Api::all(client.clone());
    let mut rules: BTreeMap<(&str, String, String), Vec<PolicyRule>> = BTreeMap::new();
    for role in cluster_roles.list(&chart).await? {
        let key = ("ClusterRole", String::new(), role.name_any());
        rules.insert(key, role.rules.unwrap_or_default());
    }
    for role in roles.list(&chart).await? {
        let key = (
            "Role",
            role.namespace().unwrap_or_default(),
            role.name_any(),
        );
        rules.insert(key, role.rules.unwrap_or_default());
    }
    let mut all = BTreeSet::new();
    for binding in everywhere.list(&chart).await? {
        let key = ("ClusterRole", String::new(), binding.role_ref.name);
        let rules = rules.get(&key).map(Vec::as_slice).unwrap_or_default();
        all.extend(rights(rules, &binding.subjects.unwrap_or_default()));
    }
    for binding in somewhere.list(&chart).await? {
        let namespace = binding.namespace().unwrap_or_default();
        let key = ("Role", namespace, binding.role_ref.name);
        let rules = rules.get(&key).map(Vec::as_slice).unwrap_or_default();
        all.extend(rights(rules, &binding.subjects.unwrap_or_default()));
    }
    Ok(all)
}

fn rights(rules: &[PolicyRule], subjects: &[Subject]) -> BTreeSet<Right> {
    let mut all = BTreeSet::new();
    for subject in subjects {
        let namespace = subject.namespace.as_deref().unwrap_or_default();
        let user = format!("system:serviceaccount:{namespace}:{}", subject.name);
        for rule in rules {
            for group in rule.api_groups.iter().flatten() {
                for resource in rule.resources.iter().flatten() {
                    all.extend(rule.verbs.iter().map(|verb| Right {
                        user: user.clone(),
                        verb: verb.clone(),
                        group: group.clone(),
                        resource: resource.clone(),
                    }));
                }
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATCH: &str = r#"{"verb":"patch","user":{"username":"u"},"objectRef":{"resource":"computenodes","subresource":"status","apiGroup":"serving.lamina.dev"},"responseStatus":{"code":200}}"#;

    fn right(verb: &str, group: &str, resource: &str) -> Right {
        Right {
            user: "u".to_owned(),
            verb: verb.to_owned(),
            group: group.to_owned(),
            resource: resource.to_owned(),
        }
    }

    #[test]
    fn calls_are_told_apart_by_what_they_did_and_whether_they_might() {
        let mut calls = Calls::default();
        let refused = r#"{"verb":"list","user":{"username":"u"},"objectRef":{"resource":"secrets"},"responseStatus":{"code":403}}"#;
        let without_object = r#"{"verb":"get","user":{"username":"u"},"requestURI":"/version"}"#;
        for line in [PATCH, PATCH, refused, without_object, &PATCH[..50]] {
            calls.add(line);
        }
        let patch = right("patch", "serving.lamina.dev", "computenodes/status");
        assert_eq!(calls.answered, [patch].into());
        assert_eq!(calls.refused, [right("list", "", "secrets")].into());
    }

    #[test]
    fn calls_of_a_user_are_counted_by_kind() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let review = r#"{"verb":"create","user":{"username":"system:serviceaccount:s:op"},"objectRef":{"resource":"tokenreviews"}}"#;
        let others = review.replace("s:op", "s:agent");
        let log = [review, &others, PATCH, review, &review[..40]].join("\n");
        std::fs::write(file.path(), log).unwrap();
        let count = |user, resource| count(file.path(), user, resource).unwrap();
        assert_eq!(count("op", "tokenreviews"), 2);
        assert_eq!(count("agent", "tokenreviews"), 1);
        assert_eq!(count("op", "computenodes"), 0);
    }

    #[test]
    fn a_rule_gives_each_verb_on_each_resource() {
        let rule = PolicyRule {
            api_groups: Some(vec![String::new()]),
            resources: Some(vec!["nodes".into(), "pods".into()]),
            verbs: vec!["list".into(), "watch".into()],
            ..PolicyRule::default()
        };
        let subject = Subject {
            name: "op".into(),
            namespace: Some("lamina-system".into()),
            ..Subject::default()
        };
        let all = rights(&[rule], &[subject]);
        assert_eq!(all.len(), 4);
        assert!(
            all.iter()
                .all(|r| r.user == "system:serviceaccount:lamina-system:op")
        );
    }
}
