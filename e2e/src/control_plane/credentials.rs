//! Certificates and keys of a control plane, for one lab.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// Why credentials could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// Making a key or a certificate failed.
    #[error("cannot make the control plane's certificates")]
    Make(#[from] rcgen::Error),
    /// A file could not be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// The kernel's error.
        #[source]
        source: std::io::Error,
    },
}

/// The files of one control plane.
#[derive(Debug, Clone)]
pub(super) struct Credentials {
    pub(super) ca: PathBuf,
    pub(super) server_certificate: PathBuf,
    pub(super) server_key: PathBuf,
    /// Signs the tokens of service accounts.
    pub(super) service_account_key: PathBuf,
    /// Checks them.
    pub(super) service_account_public_key: PathBuf,
    /// Of a user in `system:masters`.
    pub(super) kubeconfig: PathBuf,
    /// The same user's, as files.
    pub(super) admin_certificate: PathBuf,
    pub(super) admin_key: PathBuf,
}

/// A user of the API server.
#[derive(Debug, Clone, Copy)]
pub(super) struct User<'a> {
    /// Name of its files.
    pub(super) file: &'a str,
    pub(super) name: &'a str,
    pub(super) group: &'a str,
}

const ADMIN: User<'_> = User {
    file: "admin",
    name: "lab-admin",
    group: "system:masters",
};

impl Credentials {
    /// Writes all files into `folder`. `address` is where the API server
    /// listens, `service` the first address of its service range. Each of `users` gets
    /// a kubeconfig, `FILE.kubeconfig`.
    pub(super) fn create(
        folder: &Path,
        address: Ipv4Addr,
        port: u16,
        service: Ipv4Addr,
        users: &[User<'_>],
    ) -> Result<Self, CredentialsError> {
        let ca_key = KeyPair::generate()?;
        let ca_parameters = ca_parameters()?;
        let ca = ca_parameters.self_signed(&ca_key)?;
        let issuer = Issuer::new(ca_parameters, ca_key);

        let server_key = KeyPair::generate()?;
        let server = server_parameters(address, service)?.signed_by(&server_key, &issuer)?;
        let service_account_key = KeyPair::generate()?;

        let credentials = Self {
            ca: folder.join("ca.crt"),
            server_certificate: folder.join("apiserver.crt"),
            server_key: folder.join("apiserver.key"),
            service_account_key: folder.join("service-account.key"),
            service_account_public_key: folder.join("service-account.pub"),
            kubeconfig: folder.join("kubeconfig"),
            admin_certificate: folder.join("admin.crt"),
            admin_key: folder.join("admin.key"),
        };
        write(&credentials.ca, &ca.pem())?;
        write(&credentials.server_certificate, &server.pem())?;
        write(&credentials.server_key, &server_key.serialize_pem())?;
        write(
            &credentials.service_account_key,
            &service_account_key.serialize_pem(),
        )?;
        write(
            &credentials.service_account_public_key,
            &service_account_key.public_key_pem(),
        )?;
        let server = format!("https://{address}:{port}");
        let give = |user, file: &Path| credentials.give(folder, &server, &issuer, user, file);
        give(ADMIN, &credentials.kubeconfig)?;
        for user in users {
            give(*user, &kubeconfig(folder, user.file))?;
        }
        Ok(credentials)
    }

    /// Writes the certificate, the key and the kubeconfig of one user.
    fn give(
        &self,
        folder: &Path,
        server: &str,
        issuer: &Issuer<'_, KeyPair>,
        user: User<'_>,
        file: &Path,
    ) -> Result<(), CredentialsError> {
        let key = KeyPair::generate()?;
        let certificate = user_parameters(user)?.signed_by(&key, issuer)?;
        let certificate_file = folder.join(format!("{}.crt", user.file));
        let key_file = folder.join(format!("{}.key", user.file));
        write(&certificate_file, &certificate.pem())?;
        write(&key_file, &key.serialize_pem())?;
        let config = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": {
                "server": server,
                "certificate-authority": self.ca,
            }}],
            "users": [{"name": user.file, "user": {
                "client-certificate": certificate_file,
                "client-key": key_file,
            }}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user.file}}],
            "current-context": "lab",
        });
        // JSON is YAML.
        write(file, &format!("{config:#}\n"))
    }
}

/// Path of a user's kubeconfig.
pub(super) fn kubeconfig(folder: &Path, user: &str) -> PathBuf {
    folder.join(format!("{user}.kubeconfig"))
}

fn ca_parameters() -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters
        .distinguished_name
        .push(DnType::CommonName, "lamina-lab");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::CrlSign,
    ];
    Ok(parameters)
}

fn server_parameters(
    address: Ipv4Addr,
    service: Ipv4Addr,
) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(vec![
        "kubernetes".to_owned(),
        "kubernetes.default".to_owned(),
        "kubernetes.default.svc".to_owned(),
        "kubernetes.default.svc.cluster.local".to_owned(),
        "localhost".to_owned(),
        "127.0.0.1".to_owned(),
        address.to_string(),
        service.to_string(),
    ])?;
    parameters
        .distinguished_name
        .push(DnType::CommonName, "kube-apiserver");
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    Ok(parameters)
}

fn user_parameters(user: User<'_>) -> Result<CertificateParams, rcgen::Error> {
    let mut parameters = CertificateParams::new(Vec::new())?;
    parameters
        .distinguished_name
        .push(DnType::CommonName, user.name);
    parameters
        .distinguished_name
        .push(DnType::OrganizationName, user.group);
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    Ok(parameters)
}

/// Writes a file that only its owner can read.
fn write(path: &Path, content: &str) -> Result<(), CredentialsError> {
    use std::io::Write as _;
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content.as_bytes()))
        .map_err(|source| CredentialsError::Write {
            path: path.to_owned(),
            source,
        })
}
