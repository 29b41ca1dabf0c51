//! Agents on the loopback, each with its own runtime so that it can be killed like a process.

use super::DataPlane;
use crate::blobs::{BlobError, BlobSource};
use crate::door::DoorLimits;
use crate::net::{FrontTls, Trust};
use crate::serve::access::Access;
use crate::serve::access::testing::{Gatekeeper, open};
use crate::serve::directory::Directory;
use crate::serve::engine::Engine;
use crate::serve::engine::fake::{FakeBlock, FakeEngine, floats, fp32};
use crate::serve::guard;
use crate::serve::routes::Routes;
use crate::serve::slices::Slices;
use crate::telemetry::Telemetry;
use crate::testing::{blob, image, revision as revision_at, route};
use async_trait::async_trait;
use lamina_crds::Hop;
use lamina_crds::compute_node::{Blob, Route, RouteRevision, Slice, SliceState};
use lamina_model::{DataType, Digest, Tensor};
use lamina_proto::control::{DirectoryEntry, DirectoryModel};
use lamina_proto::inference::grpc_inference_service_client::GrpcInferenceServiceClient;
use lamina_proto::inference::infer_parameter::ParameterChoice;
use lamina_proto::inference::model_infer_request::InferInputTensor;
use lamina_proto::inference::{ModelInferRequest, ModelInferResponse};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

/// The store, as a folder.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(tempfile::tempdir().unwrap()))
    }

    pub(crate) fn put(&self, content: &[u8]) -> Blob {
        let blob = blob(content);
        std::fs::write(self.0.path().join(&blob.digest), content).unwrap();
        blob
    }

    pub(crate) fn put_block(&self, mul: f32, add: f32) -> Blob {
        self.put_fake(FakeBlock {
            mul,
            add,
            ..FakeBlock::default()
        })
    }

    pub(crate) fn put_fake(&self, block: FakeBlock) -> Blob {
        self.put(&serde_json::to_vec(&block).unwrap())
    }
}

#[async_trait]
impl BlobSource for Folder {
    async fn ensure(&self, digest: &Digest, _: u64) -> Result<PathBuf, BlobError> {
        let path = self.0.path().join(digest.as_str());
        let known = path.exists();
        known.then_some(path).ok_or_else(|| BlobError::Unknown {
            digest: digest.clone(),
        })
    }
}

type Rtts = Arc<Mutex<BTreeMap<String, f64>>>;

/// The whole directory, as the operator sends it.
fn directory_of(models: Vec<DirectoryModel>) -> lamina_proto::control::Directory {
    lamina_proto::control::Directory {
        complete: true,
        models,
    }
}

/// One agent's data plane.
pub(crate) struct Host {
    pub(crate) hop: Hop,
    /// Its HTTP address.
    pub(crate) http_address: String,
    pub(crate) routes: Routes,
    pub(crate) directory: Directory,
    /// Measured round trips in seconds, by node.
    pub(crate) rtts: Rtts,
    pub(crate) slices: Slices,
    pub(crate) telemetry: Telemetry,
    pub(crate) shutdown: CancellationToken,
    pub(crate) folder: Arc<Folder>,
    engine: Arc<dyn Engine>,
    wanted: Vec<Slice>,
    runtime: Option<Runtime>,
    _ready: watch::Sender<bool>,
}

impl Host {
    pub(crate) fn start(name: &str, folder: &Arc<Folder>) -> Self {
        Self::with_engine(name, folder, Arc::new(FakeEngine::default()))
    }

    /// Each run takes `run_time`.
    pub(crate) fn slow(name: &str, folder: &Arc<Folder>, run_time: Duration) -> Self {
        Self::with_engine(name, folder, Arc::new(FakeEngine::with_run_time(run_time)))
    }

    pub(crate) fn with_engine(name: &str, folder: &Arc<Folder>, engine: Arc<dyn Engine>) -> Self {
        Self::at(name, folder, engine, "127.0.0.1:0".parse().unwrap(), open())
    }

    /// Admits the clients that `gatekeeper` admits.
    pub(crate) fn guarded(name: &str, folder: &Arc<Folder>, gatekeeper: &Gatekeeper) -> Self {
        let engine = Arc::new(FakeEngine::default());
        let address = "127.0.0.1:0".parse().unwrap();
        Self::at(name, folder, engine, address, gatekeeper.access())
    }

    /// One that uses TLS by `trust`.
    pub(crate) fn with_trust(name: &str, folder: &Arc<Folder>, trust: Trust) -> Self {
        let engine = Arc::new(FakeEngine::default());
        let address = "127.0.0.1:0".parse().unwrap();
        let front = FrontTls::default();
        Self::trusting(name, folder, engine, address, (open(), trust, front))
    }

    /// One that presents `front` to clients.
    pub(crate) fn fronted(
        name: &str,
        folder: &Arc<Folder>,
        access: Access,
        trust: Trust,
        front: FrontTls,
    ) -> Self {
        let engine = Arc::new(FakeEngine::default());
        let address = "127.0.0.1:0".parse().unwrap();
        Self::trusting(name, folder, engine, address, (access, trust, front))
    }

    fn at(
        name: &str,
        folder: &Arc<Folder>,
        engine: Arc<dyn Engine>,
        address: SocketAddr,
        access: Access,
    ) -> Self {
        let (trust, front) = (Trust::default(), FrontTls::default());
        Self::trusting(name, folder, engine, address, (access, trust, front))
    }

    fn trusting(
        name: &str,
        folder: &Arc<Folder>,
        engine: Arc<dyn Engine>,
        address: SocketAddr,
        (access, trust, front): (Access, Trust, FrontTls),
    ) -> Self {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let http = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        http.set_nonblocking(true).unwrap();
        let http_address = http.local_addr().unwrap().to_string();
        let blobs: Arc<dyn BlobSource> = Arc::<Folder>::clone(folder);
        let routes = Routes::new(Arc::default());
        let directory = Directory::default();
        directory.apply(directory_of(Vec::new()));
        let rtts: Rtts = Arc::default();
        let measured = Arc::clone(&rtts);
        let slices = Slices::new(Arc::clone(&engine), Arc::clone(&blobs), Arc::default());
        let telemetry = Telemetry::default();
        let (ready, readiness) = watch::channel(true);
        let shutdown = CancellationToken::new();
        let plane = DataPlane {
            node: name.into(),
            trust,
            front,
            routes: routes.clone(),
            directory: directory.clone(),
            round_trip: Arc::new(move |node: &str| measured.lock().unwrap().get(node).copied()),
            slices: slices.clone(),
            blobs,
            telemetry: telemetry.clone(),
            ready: readiness,
            access,
            limits: DoorLimits::for_requests(),
            room: guard::room(512 << 20),
            run_memory_bytes: 3 << 30,
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let token = shutdown.clone();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let http = tokio::net::TcpListener::from_std(http).unwrap();
            plane.serve(listener, Some(http), token).await;
        });
        Self {
            hop: Hop {
                node: name.into(),
                address,
            },
            http_address,
            routes,
            directory,
            rtts,
            slices,
            telemetry,
            shutdown,
            folder: Arc::clone(folder),
            engine,
            wanted: Vec::new(),
            runtime: Some(runtime),
            _ready: ready,
        }
    }

    /// Ends it as SIGKILL would: all sockets close.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            let end = move || runtime.shutdown_timeout(Duration::from_secs(2));
            std::thread::spawn(end).join().unwrap();
        }
    }

    /// Restarts a killed one at the same address, with nothing loaded.
    pub(crate) fn restarted(mut self) -> Self {
        self.kill();
        let address = self.hop.address.parse().unwrap();
        Self::at(
            &self.hop.node,
            &self.folder,
            Arc::clone(&self.engine),
            address,
            open(),
        )
    }

    /// Holds `slice` from now on, beside the others.
    pub(crate) async fn hold(&mut self, slice: Slice) {
        self.wanted.push(slice);
        self.slices.apply(&self.wanted);
        for _ in 0..500 {
            let statuses = self.slices.statuses();
            if statuses.iter().all(|s| s.state == SliceState::Ready) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("not ready: {:?}", self.slices.statuses());
    }

    /// Drops the slices of `revision`.
    pub(crate) fn drop_revision(&mut self, revision: i64) {
        self.wanted.retain(|s| s.revision != revision);
        self.slices.apply(&self.wanted);
    }

    /// Receives the list of all models from the operator.
    pub(crate) fn hear(&self, models: &[DirectoryModel]) {
        self.directory.apply(directory_of(models.to_vec()));
    }

    pub(crate) fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.hop.address))
            .unwrap()
            .connect_lazy()
    }

    pub(crate) fn client(&self) -> GrpcInferenceServiceClient<Channel> {
        GrpcInferenceServiceClient::new(self.channel())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A slice of model `u` with one fake block.
pub(crate) fn part(
    folder: &Folder,
    revision: i64,
    segment: u32,
    (mul, add): (f32, f32),
    next: Option<&Host>,
) -> Slice {
    let name = |at: u32| {
        if at == 0 {
            "image".to_owned()
        } else {
            format!("x{at}")
        }
    };
    let last = next.is_none();
    Slice {
        blocks: vec![folder.put_block(mul, add)],
        inputs: vec![image(&name(segment))],
        outputs: vec![image(&if last {
            "scores".to_owned()
        } else {
            name(segment + 1)
        })],
        next: next.map(|h| h.hop.clone()),
        ..crate::testing::slice("u", revision, segment)
    }
}

/// Deploys `revision` of model `m` over `hosts`, each multiplying and adding.
pub(crate) async fn deploy(revision: i64, hosts: &mut [(&mut Host, (f32, f32))]) {
    let parts: Vec<Slice> = hosts
        .iter()
        .enumerate()
        .map(|(i, (host, block))| {
            let next = hosts.get(i + 1).map(|(next, _)| &**next);
            part(&host.folder, revision, i as u32, *block, next)
        })
        .collect();
    for ((host, _), part) in hosts.iter_mut().zip(parts) {
        host.hold(part).await;
    }
}

/// The route of model `m` on its entry; revisions with their first hosts.
pub(crate) fn route_to(active: i64, revisions: &[(i64, &Host)]) -> Route {
    Route {
        revisions: revisions
            .iter()
            .map(|&(number, first)| RouteRevision {
                first: first.hop.clone(),
                ..revision_at(number, &first.hop.node)
            })
            .collect(),
        ..route("u", "m", active)
    }
}

/// The directory's entry of model `m`: its entries, and whether each is active.
pub(crate) fn listed(entries: &[(&Host, bool)]) -> DirectoryModel {
    let entry = |&(host, serves): &(&Host, bool)| DirectoryEntry {
        node: host.hop.node.clone(),
        address: host.hop.address.clone(),
        placement_uid: "u".into(),
        serves,
    };
    DirectoryModel {
        namespace: "default".into(),
        name: "m".into(),
        entries: entries.iter().map(entry).collect(),
        ..DirectoryModel::default()
    }
}

/// A request for model `m` with raw contents.
pub(crate) fn request(id: &str, values: &[f32]) -> ModelInferRequest {
    let tensor = fp32(&[values.len() as i64 / 2, 2], values);
    ModelInferRequest {
        model_name: "m".into(),
        id: id.into(),
        inputs: vec![InferInputTensor {
            name: "image".into(),
            datatype: "FP32".into(),
            shape: tensor.shape,
            ..InferInputTensor::default()
        }],
        raw_input_contents: vec![tensor.data],
        ..ModelInferRequest::default()
    }
}

/// The first output's values.
pub(crate) fn values(response: &ModelInferResponse) -> Vec<f32> {
    floats(&Tensor {
        datatype: DataType::Fp32,
        shape: response.outputs[0].shape.clone(),
        data: response.raw_output_contents[0].clone(),
    })
}

pub(crate) fn revision(response: &ModelInferResponse) -> i64 {
    let parameter = &response.parameters["lamina_placement_revision"];
    match parameter.parameter_choice {
        Some(ParameterChoice::Int64Param(revision)) => revision,
        ref other => panic!("{other:?}"),
    }
}

pub(crate) fn parameter(response: &ModelInferResponse, key: &str) -> String {
    match &response.parameters[key].parameter_choice {
        Some(ParameterChoice::StringParam(text)) => text.clone(),
        other => panic!("{other:?}"),
    }
}
