//! Reading certificates.

use crate::name;
use crate::reached::{Reached, address};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Most certificates in one bundle; more are a mistake.
const MOST: usize = 16;

/// An invalid certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // each message names its fields
pub enum CertificateError {
    #[error("this is not a PEM certificate: {0}")]
    Pem(String),
    #[error("this is not an X.509 certificate: {0}")]
    Content(String),
    #[error("there is no certificate in it")]
    Empty,
    #[error("there are more than {MOST} certificates in it")]
    TooMany,
}

/// Validity, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The first second.
    pub not_before: i64,
    /// The last second.
    pub not_after: i64,
}

impl Validity {
    /// Whether `now`, in seconds since 1970, is within it.
    pub const fn holds(&self, now: i64) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// The contents of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its validity.
    pub validity: Validity,
    /// The node whose agent it names, if it names exactly one.
    pub node: Option<String>,
    /// That host's join, if it is not a Node.
    pub join: Option<String>,
    /// Its other names and addresses.
    pub reached: Reached,
    /// Whether it may sign others.
    pub is_authority: bool,
}

/// The certificates in `pem`.
///
/// # Errors
/// There are none, too many, or something else is between them.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        if found.len() == MOST {
            return Err(CertificateError::TooMany);
        }
        found.push(certificate.map_err(|error| CertificateError::Pem(error.to_string()))?);
    }
    if found.is_empty() {
        return Err(CertificateError::Empty);
    }
    Ok(found)
}

/// The contents of `certificate`, which is not verified here.
///
/// # Errors
/// It is invalid.
pub fn read(certificate: &CertificateDer<'_>) -> Result<Facts, CertificateError> {
    let parsed = parse(certificate)?;
    let names = parsed
        .subject_alternative_name()
        .map_err(|error| CertificateError::Content(error.to_string()))?;
    let names = names.map_or(&[][..], |names| &names.value.general_names[..]);
    let mut hosts = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => name::named_in(uri),
        _ => None,
    });
    let host = match (hosts.next(), hosts.next()) {
        (Some(host), None) => Some(host),
        _ => None,
    };
    let mut reached = Reached::default();
    for name in names {
        match name {
            GeneralName::DNSName(name) => reached.names.push((*name).to_owned()),
            GeneralName::IPAddress(bytes) => reached.addresses.extend(address(bytes)),
            _ => {}
        }
    }
    let validity = parsed.validity();
    Ok(Facts {
        validity: Validity {
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
        },
        node: host.map(|host| host.node.to_owned()),
        join: host.and_then(|host| host.join).map(str::to_owned),
        reached,
        is_authority: parsed.is_ca(),
    })
}

/// Whether `authority` signed `certificate`.
pub fn is_issued_by(certificate: &CertificateDer<'_>, authority: &CertificateDer<'_>) -> bool {
    let (Ok(certificate), Ok(authority)) = (parse(certificate), parse(authority)) else {
        return false;
    };
    let key = authority.public_key();
    certificate.verify_signature(Some(key)).is_ok()
}

fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    let parsed = X509Certificate::from_der(certificate.as_ref());
    let (_, parsed) = parsed.map_err(|error| CertificateError::Content(error.to_string()))?;
    Ok(parsed)
}

/// The public key of `certificate` (DER).
pub(crate) fn public_key(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, CertificateError> {
    Ok(parse(certificate)?.public_key().raw.to_vec())
}

/// `certificate` in PEM.
pub(crate) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    let content = pem::Pem::new("CERTIFICATE", certificate.as_ref());
    pem::encode_config(
        &content,
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}
