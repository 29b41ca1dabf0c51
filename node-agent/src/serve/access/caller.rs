use super::denial::Denial;
use super::keys::{KeyTable, Scope};
use super::remembered::Identity;
use super::shown::{Shown, is_signed};
use http::HeaderValue;
use std::net::IpAddr;
use std::sync::Arc;

/// How clients authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AuthMode {
    /// Not at all: anyone may use every model.
    None,
    /// By a key from a labelled Secret, for models in its namespace.
    ApiKey,
    /// By a bearer token that the API server accepts, for the DnnModels that its holder
    /// may get.
    Token,
}

impl AuthMode {
    /// The mode's name.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::ApiKey => "apiKey",
            Self::Token => "token",
        }
    }
}

/// A client: the namespace of its short names, and its access.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// Namespace of models called by a short name.
    pub(super) namespace: Arc<str>,
    pub(super) grant: Grant,
    shown: Option<Shown>,
    /// Its address.
    pub(super) from: IpAddr,
}

/// The models that a caller may use.
#[derive(Debug, Clone)]
pub(super) enum Grant {
    Everything,
    Key(Arc<Scope>),
    Token(Arc<Identity>),
}

/// What its credentials show before anybody is asked. Pure.
pub(super) enum Admission {
    /// With its credentials nevertheless, which an entry may need while the mode is changed from
    /// agent to agent.
    Anyone(Option<Shown>),
    Key(Arc<Scope>, Shown),
    /// The API server must check these.
    Ask(Shown),
}

/// Whether a client with these credentials is admitted, by `mode` and the valid `keys`.
///
/// # Errors
/// It is not.
pub(super) fn admission(
    mode: AuthMode,
    audience: &str,
    shown: Result<Option<Shown>, Denial>,
    keys: &KeyTable,
) -> Result<Admission, Denial> {
    match mode {
        // Unneeded credentials may be invalid.
        AuthMode::None => Ok(Admission::Anyone(shown.unwrap_or_default())),
        AuthMode::ApiKey => {
            let shown = shown?.ok_or(Denial::NoKey)?;
            match keys.get(shown.digest()) {
                Some(scope) => Ok(Admission::Key(Arc::clone(scope), shown)),
                None if keys.is_heard() => Err(Denial::BadKey),
                None => Err(Denial::Unheard),
            }
        }
        AuthMode::Token => {
            let audience = || audience.to_owned();
            match shown?.filter(Shown::is_bearer) {
                None => Err(Denial::NoToken {
                    audience: audience(),
                }),
                Some(token) if is_signed(token.expose()) => Ok(Admission::Ask(token)),
                Some(_) => Err(Denial::BadToken {
                    audience: audience(),
                }),
            }
        }
    }
}

impl Caller {
    pub(super) fn new(
        default: &Arc<str>,
        grant: Grant,
        shown: Option<Shown>,
        from: IpAddr,
    ) -> Self {
        let namespace = match &grant {
            Grant::Everything => None,
            Grant::Key(scope) => Some(scope.namespace.as_str()),
            Grant::Token(who) => who.namespace(),
        };
        Self {
            namespace: namespace.map_or_else(|| Arc::clone(default), Arc::from),
            grant,
            shown,
            from,
        }
    }

    /// `namespace/name` of the model that this client calls `name`: a short name means one in its
    /// own namespace, never another.
    pub(crate) fn full_name(&self, name: &str) -> String {
        if name.contains('/') {
            name.to_owned()
        } else {
            format!("{}/{name}", self.namespace)
        }
    }

    /// Whether it may use the model, as far as that is known locally.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn may_ask_for(&self, full_name: &str) -> Result<(), Denial> {
        match &self.grant {
            Grant::Key(scope) if !scope.covers(full_name) => Err(Denial::forbidden(full_name)),
            _ => Ok(()),
        }
    }

    /// Its credentials, for the `authorization` of forwarded requests.
    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        self.shown.as_ref().and_then(Shown::header_value)
    }

    pub(super) const fn shown(&self) -> Option<&Shown> {
        self.shown.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::Keys;
    use super::super::testing::key;
    use super::*;
    use http::HeaderMap;
    use lamina_proto::control::ApiKeys;

    fn admitted(mode: AuthMode, headers: &[(&'static str, &str)]) -> Result<String, Denial> {
        let keys = Keys::default();
        keys.apply(ApiKeys {
            keys: vec![key("lab-key", "lab", &["m"])],
        });
        admitted_by(mode, headers, &keys)
    }

    fn admitted_by(
        mode: AuthMode,
        headers: &[(&'static str, &str)],
        keys: &Keys,
    ) -> Result<String, Denial> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let admission = admission(mode, "lamina", Shown::of(&map), &keys.now())?;
        Ok(match admission {
            Admission::Anyone(_) => "anyone".to_owned(),
            Admission::Key(scope, _) => scope.namespace.clone(),
            Admission::Ask(token) => format!("ask about {}", token.expose()),
        })
    }

    #[test]
    fn without_authentication_nothing_is_looked_at() {
        for headers in [
            &[][..],
            &[("authorization", "Basic x")],
            &[("x-api-key", "wrong")],
        ] {
            assert_eq!(admitted(AuthMode::None, headers).unwrap(), "anyone");
        }
    }

    #[test]
    fn a_key_is_taken_from_either_header_and_no_other_is() {
        for headers in [
            ("authorization", "Bearer lab-key"),
            ("x-api-key", "lab-key"),
        ] {
            assert_eq!(admitted(AuthMode::ApiKey, &[headers]).unwrap(), "lab");
        }
        let refused = |headers| admitted(AuthMode::ApiKey, headers).unwrap_err();
        assert_eq!(refused(&[]), Denial::NoKey);
        assert_eq!(refused(&[("x-api-key", "other")]), Denial::BadKey);
        assert_eq!(refused(&[("authorization", "Basic x")]), Denial::Malformed);
        let never_told = Keys::default();
        let headers = [("x-api-key", "lab-key")];
        let refused = admitted_by(AuthMode::ApiKey, &headers, &never_told);
        assert_eq!(refused, Err(Denial::Unheard));
    }

    #[test]
    fn a_token_is_asked_about_only_where_it_can_be_one() {
        let bearer = [("authorization", "Bearer a.b.c")];
        let asked = admitted(AuthMode::Token, &bearer).unwrap();
        assert_eq!(asked, "ask about a.b.c");
        let audience = || "lamina".to_owned();
        for (headers, expected) in [
            (
                &[][..],
                Denial::NoToken {
                    audience: audience(),
                },
            ),
            (
                &[("x-api-key", "a.b.c")][..],
                Denial::NoToken {
                    audience: audience(),
                },
            ),
            (
                &[("authorization", "Bearer lab-key")][..],
                Denial::BadToken {
                    audience: audience(),
                },
            ),
        ] {
            assert_eq!(admitted(AuthMode::Token, headers), Err(expected));
        }
    }

    #[test]
    fn a_short_name_lies_in_the_callers_namespace() {
        let default: Arc<str> = "default".into();
        let of = |grant| Caller::new(&default, grant, None, [10, 0, 0, 1].into());
        let anyone = of(Grant::Everything);
        assert_eq!(anyone.full_name("m"), "default/m");
        assert_eq!(anyone.full_name("lab/m"), "lab/m");
        let scope = Scope {
            namespace: "lab".into(),
            models: ["m".to_owned()].into(),
            requests_per_second: None,
        };
        let lab = of(Grant::Key(Arc::new(scope)));
        assert_eq!(lab.full_name("m"), "lab/m");
        lab.may_ask_for("lab/m").unwrap();
        for other in ["lab/n", "default/m", "m", "lab/m/", ""] {
            let refused = lab.may_ask_for(other).unwrap_err();
            assert_eq!(refused, Denial::Forbidden(other.to_owned()));
        }
        let who = |user: &str| {
            let user = user.to_owned();
            Grant::Token(Arc::new(Identity {
                user,
                ..Identity::default()
            }))
        };
        let account = of(who("system:serviceaccount:lab:cam"));
        assert_eq!(account.full_name("m"), "lab/m");
        let person = of(who("alice"));
        assert_eq!(person.full_name("m"), "default/m");
    }
}
