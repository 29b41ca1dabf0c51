//! A certificate authority: the operator's signing key.

use crate::certificate::{
    CertificateError, Facts, Validity, certificates, public_key, read, to_pem,
};
use crate::name::{Named, OPERATOR, Workload, agent, is_node_name};
use crate::reached::{Reached, is_ours};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::net::IpAddr;
use std::time::Duration;
use time::OffsetDateTime;

/// Certificates are backdated by this much, or by a tenth of their lifetime if that is less, since
/// clocks differ.
const SKEW: Duration = Duration::from_secs(3600);

/// Nothing was signed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum AuthorityError {
    #[error("the authority's certificate cannot be used")]
    Certificate(#[from] CertificateError),
    #[error("the authority's certificate may not sign others; it needs `isCA`")]
    NoAuthority,
    #[error("the authority's private key cannot be read: {0}")]
    Key(String),
    #[error("the authority's private key does not match its certificate")]
    OtherKey,
    #[error("a certificate cannot name the node `{0}`: it is too long, or no DNS name")]
    Node(String),
    #[error("the request cannot be signed: {0}")]
    Request(String),
    #[error("the request's key is not ECDSA P-256")]
    RequestKey,
    #[error("a time is out of bounds; check the clock of this host")]
    Time,
    #[error("signing failed: {0}")]
    Sign(String),
}

/// A certificate authority with its private key.
pub struct Authority {
    pem: String,
    key_pem: String,
    der: CertificateDer<'static>,
    validity: Validity,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

/// A certificate in PEM with its private key.
#[derive(Clone)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key, PKCS #8.
    pub key: String,
}

/// Validity of a certificate made `now`, in seconds since 1970, and no longer than its authority's.
pub fn validity(now: i64, lifetime: Duration, authority: Validity) -> Validity {
    let seconds = |d: Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    let skew = seconds(SKEW.min(lifetime / 10));
    Validity {
        not_before: now.saturating_sub(skew),
        not_after: now
            .saturating_add(seconds(lifetime))
            .min(authority.not_after),
    }
}

/// A new key and its certificate request. The request names nobody: the signer knows who
/// asks.
///
/// # Errors
/// Most likely there is no randomness.
pub fn request() -> Result<(String, Vec<u8>), AuthorityError> {
    let key = new_key()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let request = params.serialize_request(&key).map_err(sign_error)?;
    Ok((key.serialize_pem(), request.der().to_vec()))
}

impl Authority {
    /// A new self-signed one.
    ///
    /// # Errors
    /// There is no randomness, or the times are invalid.
    pub fn new(validity: Validity) -> Result<Self, AuthorityError> {
        let key = new_key()?;
        // Different ones have different names, so that they are never confused.
        let name = format!("Lamina authority {}", validity.not_before);
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = times(validity)?;
        params.distinguished_name = named(&name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).map_err(sign_error)?;
        Self::from_pem(&to_pem(certificate.der()), &key.serialize_pem())
    }

    /// From PEM. The first of several certificates counts.
    ///
    /// # Errors
    /// It is invalid, or does not match the key.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, AuthorityError> {
        let der = certificates(certificate.as_bytes())?.swap_remove(0);
        let Facts {
            validity,
            is_authority,
            ..
        } = read(&der)?;
        if !is_authority {
            return Err(AuthorityError::NoAuthority);
        }
        let pair = KeyPair::from_pem(key).map_err(|e| AuthorityError::Key(e.to_string()))?;
        if public_key(&der)? != pair.subject_public_key_info() {
            return Err(AuthorityError::OtherKey);
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(sign_error)?;
        Ok(Self {
            pem: to_pem(&der),
            key_pem: key.to_owned(),
            der,
            validity,
            issuer,
        })
    }

    /// Its certificate in PEM.
    pub fn certificate(&self) -> &str {
        &self.pem
    }

    /// Its private key in PEM, for storage.
    pub fn key(&self) -> &str {
        &self.key_pem
    }

    /// Its certificate.
    pub const fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Its validity.
    pub const fn validity(&self) -> Validity {
        self.validity
    }

    /// A certificate in PEM for the agent of `node`, for the key of `request` (PKCS #10, DER).
    /// Everything else in the request is ignored.
    ///
    /// # Errors
    /// The node cannot be named, or the request is invalid.
    pub fn issue_agent(
        &self,
        agents: &Workload,
        node: &str,
        request: &[u8],
        validity: Validity,
    ) -> Result<String, AuthorityError> {
        self.issue_front(agents, node.into(), request, validity, &Reached::default())
    }

    /// As [`Authority::issue_agent`], for the agent of `host`, with the names in `reached` for
    /// clients. Names that hosts use for each other are left out of these.
    ///
    /// # Errors
    /// The host cannot be named, or the request is invalid.
    pub fn issue_front(
        &self,
        agents: &Workload,
        host: Named<'_>,
        request: &[u8],
        validity: Validity,
        reached: &Reached,
    ) -> Result<String, AuthorityError> {
        if !is_node_name(host.node) {
            return Err(AuthorityError::Node(host.node.to_owned()));
        }
        let request = parsed(request)?;
        if PublicKeyData::algorithm(&request.public_key) != &PKCS_ECDSA_P256_SHA256 {
            return Err(AuthorityError::RequestKey);
        }
        let mut params = leaf(&agent(host.node), &agents.uri_of(host), validity)?;
        for name in reached.names.iter().filter(|name| !is_ours(name)) {
            let name = Ia5String::try_from(name.as_str()).map_err(sign_error)?;
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        let addresses = reached.addresses.iter().copied();
        params
            .subject_alt_names
            .extend(addresses.map(SanType::IpAddress));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let signed = params.signed_by(&request.public_key, &self.issuer);
        Ok(to_pem(signed.map_err(sign_error)?.der()))
    }

    /// A certificate with a new key for the operator, which agents reach at `address`.
    ///
    /// # Errors
    /// There is no randomness, or the times are invalid.
    pub fn issue_operator(
        &self,
        operator: &Workload,
        address: IpAddr,
        validity: Validity,
    ) -> Result<Pair, AuthorityError> {
        let key = new_key()?;
        let mut params = leaf(OPERATOR, &operator.uri(), validity)?;
        params.subject_alt_names.push(SanType::IpAddress(address));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let signed = params.signed_by(&key, &self.issuer).map_err(sign_error)?;
        Ok(Pair {
            certificate: to_pem(signed.der()),
            key: key.serialize_pem(),
        })
    }
}

/// The public key of a request (PKCS #10, DER), in DER.
///
/// # Errors
/// It is not a request.
pub fn request_key(request: &[u8]) -> Result<Vec<u8>, AuthorityError> {
    Ok(parsed(request)?.public_key.subject_public_key_info())
}

fn parsed(request: &[u8]) -> Result<CertificateSigningRequestParams, AuthorityError> {
    let request = CertificateSigningRequestDer::from(request);
    let request = CertificateSigningRequestParams::from_der(&request);
    request.map_err(|error| AuthorityError::Request(error.to_string()))
}

fn leaf(dns: &str, uri: &str, validity: Validity) -> Result<CertificateParams, AuthorityError> {
    let text = |text: &str| Ia5String::try_from(text).map_err(sign_error);
    let mut params = CertificateParams::default();
    (params.not_before, params.not_after) = times(validity)?;
    // A common name takes 64 characters; the relevant names are alternative names.
    params.distinguished_name = named("Lamina");
    params.subject_alt_names = vec![SanType::DnsName(text(dns)?), SanType::URI(text(uri)?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn named(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

fn new_key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(sign_error)
}

fn times(validity: Validity) -> Result<(OffsetDateTime, OffsetDateTime), AuthorityError> {
    let time =
        |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| AuthorityError::Time);
    Ok((time(validity.not_before)?, time(validity.not_after)?))
}

#[allow(clippy::needless_pass_by_value)] // the shape that map_err wants
fn sign_error(error: rcgen::Error) -> AuthorityError {
    AuthorityError::Sign(error.to_string())
}
