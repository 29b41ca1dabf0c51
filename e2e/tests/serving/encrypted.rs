//! Third-party clients with TLS, at the model's entry and at a relaying agent. Each case reinstalls
//! the chart in its mode, and restores it.

use crate::access::with_values;
use crate::clients::both_ways;
use anyhow::{Result, ensure};
use lamina_e2e::scene::{Scene, Step, poll};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::ffi::OsStr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

const MODEL: &str = "mobilenet-v2";
const SECRET: &str = "clients-certificate";
const SYSTEM: &str = "lamina-system";
/// The entry, and a relaying agent.
const HOSTS: [&str; 2] = ["cam-1", "edge-2"];
/// Time until a changed Secret is mounted in a pod and read.
const SOON: Duration = Duration::from_secs(90);

/// Calls over gRPC and over HTTP, with TLS if there are authorities to trust; prints a line for
/// each.
const ASK: &str = "
import sys
import numpy
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
grpc_url, http_url, model, authorities = sys.argv[1:]
def grpc():
    if not authorities:
        return over_grpc, over_grpc.InferenceServerClient(grpc_url)
    return over_grpc, over_grpc.InferenceServerClient(grpc_url, ssl=True, root_certificates=authorities)
def http():
    if not authorities:
        return over_http, over_http.InferenceServerClient(http_url)
    options = {'ca_certs': authorities}
    return over_http, over_http.InferenceServerClient(http_url, ssl=True, ssl_options=options)
for connect in [grpc, http]:
    try:
        triton, client = connect()
        image = triton.InferInput('image', [1, 3, 224, 224], 'FP32')
        image.set_data_from_numpy(numpy.zeros([1, 3, 224, 224], numpy.float32))
        assert client.is_server_live()
        client.infer(model, [image])
        print('answered')
    except Exception as error:
        print('refused:', ' '.join(str(error).split()))
";

/// The answers of `host`'s agent over gRPC and over HTTP to a client that trusts the authorities in
/// `file`; without a file, to one without TLS.
async fn ask(scene: &Scene, host: &str, file: Option<&Path>) -> Result<Vec<String>> {
    let more = [
        OsStr::new(MODEL),
        file.map_or(OsStr::new(""), Path::as_os_str),
    ];
    both_ways(scene, host, ASK, &more).await
}

/// Calls until both answers begin with `wanted`: certificates take a while.
async fn says(scene: &Scene, host: &str, file: Option<&Path>, wanted: &str) -> Result<()> {
    let what = format!("`{wanted}` from {host} for {file:?}");
    let said = poll(&what, SOON, async || {
        let said = ask(scene, host, file).await;
        let said = said.unwrap_or_else(|error| vec![error.to_string()]);
        Ok(if said.iter().all(|line| line.starts_with(wanted)) {
            Step::Done(())
        } else {
            Step::NotYet(said.join("; "))
        })
    });
    Ok(said.await?)
}

/// An authority of the site, which signs a certificate for the addresses of every host.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let own = params.self_signed(&key)?;
        Ok(Self {
            pem: own.pem(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The Secret of type `kubernetes.io/tls` as cert-manager writes it.
    fn secret(&self, scene: &Scene) -> Result<String> {
        let mut addresses = Vec::new();
        for host in HOSTS {
            addresses.push(scene.lab.address(host)?.to_string());
        }
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(addresses)?;
        params.use_authority_key_identifier_extension = true;
        let own = params.signed_by(&key, &self.issuer)?;
        let secret = serde_json::json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": SECRET, "namespace": SYSTEM},
            "type": "kubernetes.io/tls",
            "stringData": {"tls.crt": own.pem(), "tls.key": key.serialize_pem()},
        });
        Ok(secret.to_string())
    }
}

pub(crate) async fn clients_believe_the_operators_authority(scene: &Scene) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let values = [("agent.front.tls.mode", "auto")];
    let work = async {
        let bundle = ["get", "configmap", "lamina-ca", "--namespace", SYSTEM];
        let bundle = [&bundle[..], &["--output", "jsonpath={.data.ca\\.crt}"]].concat();
        let believed = folder.path().join("lamina-ca.crt");
        std::fs::write(&believed, scene.lab.kubectl(&bundle).await?)?;
        let stranger = folder.path().join("other.crt");
        std::fs::write(&stranger, Authority::new("stranger")?.pem)?;
        for host in HOSTS {
            says(scene, host, Some(&believed), "answered").await?;
            says(scene, host, Some(&stranger), "refused").await?;
            says(scene, host, None, "refused").await?;
        }
        // While the operator is away, an agent restarts: it uses its former certificate.
        let kill = nix::sys::signal::Signal::SIGKILL;
        scene.kill("operator", None, kill).await?;
        scene.kill("agent", Some("edge-2"), kill).await?;
        says(scene, "edge-2", Some(&believed), "answered").await
    };
    with_values(scene, &values, work).await
}

pub(crate) async fn a_given_certificate_is_replaced_while_clients_are_answered(
    scene: &Scene,
) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (old, new) = (Authority::new("old")?, Authority::new("new")?);
    let file = |name: &str, pem: String| -> Result<_> {
        let path = folder.path().join(name);
        std::fs::write(&path, pem)?;
        Ok(path)
    };
    let (of_old, of_new) = (file("old", old.pem.clone())?, file("new", new.pem.clone())?);
    let of_both = file("both", format!("{}{}", old.pem, new.pem))?;
    scene.apply(&old.secret(scene)?).await?;
    let values = [
        ("agent.front.tls.mode", "secret"),
        ("agent.front.tls.secretName", SECRET),
    ];
    let work = async {
        for host in HOSTS {
            says(scene, host, Some(&of_old), "answered").await?;
            says(scene, host, Some(&of_new), "refused").await?;
            says(scene, host, None, "refused").await?;
        }
        // A client that trusts both loses nothing meanwhile.
        let (is_over, asked) = (AtomicBool::new(false), AtomicU32::new(0));
        let beside = async {
            while !is_over.load(Ordering::Relaxed) {
                let said = ask(scene, "edge-2", Some(&of_both)).await?;
                let is_it = said.iter().all(|line| line == "answered");
                ensure!(is_it, "lost while the certificate was replaced: {said:?}");
                asked.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        let replaced = async {
            let replaced = async {
                scene.apply(&new.secret(scene)?).await?;
                for host in HOSTS {
                    says(scene, host, Some(&of_new), "answered").await?;
                    says(scene, host, Some(&of_old), "refused").await?;
                }
                anyhow::Ok(())
            };
            let outcome = replaced.await;
            is_over.store(true, Ordering::Relaxed);
            outcome
        };
        let (beside, replaced) = tokio::join!(beside, replaced);
        replaced?;
        beside?;
        ensure!(asked.load(Ordering::Relaxed) > 0, "nobody asked meanwhile");
        anyhow::Ok(())
    };
    let outcome = with_values(scene, &values, work).await;
    let delete = ["delete", "secret", SECRET, "--namespace", SYSTEM];
    scene.lab.kubectl(&delete).await?;
    outcome
}
