use super::config::config;
use super::dispatch::Dispatcher;
use super::error::{FrontError, Setback};
use super::index;
use super::journey::Journey;
use super::output::{self, VERSION};
use super::patience::patience;
use super::place::{Place, View, Waited, place};
use super::question::Question;
use super::relay::{Relay, marked};
use super::statistics::Statistics;
use super::stream;
use super::trouble::Troubles;
use super::wait::{Changes, WaitingRoom};
use crate::serve::access::{Access, Caller, FORWARDED};
use crate::serve::batches::Batches;
use crate::serve::deadline::Deadline;
use crate::serve::directory::Directory;
use crate::serve::guard::{AnswerBytes, Turns};
use crate::serve::hop::Forwarder;
use crate::serve::routes::{Model, Routes};
use crate::telemetry::{Outcome, RequestSample};
use futures::stream::{BoxStream, StreamExt as _};
use lamina_crds::Hop;
use lamina_model::ValueSpec;
use lamina_proto::inference::grpc_inference_service_server::GrpcInferenceService;
use lamina_proto::inference::model_metadata_response::TensorMetadata;
use lamina_proto::inference::{
    ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse,
    ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ModelStatisticsRequest, ModelStatisticsResponse, ModelStreamInferResponse,
    RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest,
    RepositoryModelLoadResponse, RepositoryModelUnloadRequest, RepositoryModelUnloadResponse,
    ServerLiveRequest, ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse,
    ServerReadyRequest, ServerReadyResponse,
};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument as _;

/// The server's name.
pub(crate) const SERVER_NAME: &str = "lamina";
/// Supported extensions of the protocol, under their known names.
pub(crate) const EXTENSIONS: [&str; 2] = ["model_configuration", "statistics"];

/// Smallest round trip to a host in seconds, if measured.
pub(crate) type RoundTrip = Arc<dyn Fn(&str) -> Option<f64> + Send + Sync>;

/// The inference service of one agent.
#[derive(Clone)]
pub(crate) struct Front {
    dispatcher: Dispatcher,
    directory: Directory,
    round_trip: RoundTrip,
    relay: Relay,
    waiting: WaitingRoom,
    statistics: Statistics,
    access: Access,
    ready: watch::Receiver<bool>,
}

impl Front {
    /// `ready` tells whether the agent accepts requests at all.
    pub(crate) fn new(
        routes: Routes,
        directory: Directory,
        round_trip: RoundTrip,
        forwarder: Forwarder,
        batches: Batches,
        access: Access,
        ready: watch::Receiver<bool>,
    ) -> Self {
        Self {
            directory,
            round_trip,
            relay: Relay::new(forwarder.hops.clone()),
            waiting: WaitingRoom::new(forwarder.telemetry.clone()),
            dispatcher: Dispatcher {
                routes,
                forwarder,
                troubles: Troubles::default(),
                batches,
            },
            statistics: Statistics::default(),
            access,
            ready,
        }
    }

    fn node(&self) -> &str {
        &self.dispatcher.forwarder.node
    }

    /// Authenticates clients.
    pub(crate) const fn access(&self) -> &Access {
        &self.access
    }

    /// `namespace/name` of the model that `caller` calls `name`, if it may use it.
    ///
    /// # Errors
    /// It may not.
    pub(crate) async fn asked_for(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<String, FrontError> {
        let full_name = caller.full_name(name);
        self.access.allow(caller, &full_name).await?;
        Ok(full_name)
    }

    fn place(&self, full_name: &str) -> Result<Place, FrontError> {
        let routes = &self.dispatcher.routes;
        place(
            full_name,
            &View {
                node: self.node(),
                routed: &routes.find(full_name),
                directory: &self.directory.now(),
                round_trip: &*self.round_trip,
                is_unreachable: &|address| self.relay.is_unreachable(address),
            },
        )
    }

    /// As [`Front::place`] for a forwarded request: it is answered here or not at all, since the
    /// forwarding agent knows where else to look.
    fn place_of_forwarded(&self, full_name: &str) -> Result<Place, FrontError> {
        match self.place(full_name) {
            here @ (Ok(Place::Here(_)) | Err(FrontError::Refused { .. })) => here,
            _ => Err(self.not_entry(full_name)),
        }
    }

    fn not_entry(&self, name: &str) -> FrontError {
        FrontError::NotEntry {
            node: self.node().to_owned(),
            model: name.to_owned(),
        }
    }

    /// The answer to `request`, which counts as inside this agent until then. Dropping
    /// the future cancels it on every host.
    ///
    /// # Errors
    /// Why there is none.
    pub(crate) async fn infer(
        &self,
        request: ModelInferRequest,
        metadata: &MetadataMap,
        deadline: Deadline,
        caller: &Caller,
    ) -> Result<ModelInferResponse, FrontError> {
        let _inside = self.dispatcher.forwarder.telemetry.request_began();
        check_version(&request.model_name, &request.model_version)?;
        let full_name = self.asked_for(caller, &request.model_name).await?;
        let mut journey = Journey::new(request, full_name, metadata, deadline);
        let span = journey.span();
        let answering = async {
            let outcome = if metadata.contains_key(FORWARDED) {
                self.answer_forwarded(&mut journey).await
            } else {
                self.answer(&mut journey, metadata, caller).await
            };
            let error = outcome.as_ref().err().map(tracing::field::display);
            tracing::debug!(error, retried = journey.tries.failed, "a request ended");
            outcome
        };
        let outcome = answering.instrument(span).await;
        self.count(&journey, &outcome);
        outcome
    }

    async fn answer_forwarded(
        &self,
        journey: &mut Journey,
    ) -> Result<ModelInferResponse, FrontError> {
        let name = journey.full_name.clone();
        if let Place::Here(model) = self.place_of_forwarded(&name)?
            && let Some(response) = self.answer_here(&model, journey).await?
        {
            return Ok(response);
        }
        journey.counted_as = None;
        Err(self.not_entry(&name))
    }

    async fn answer(
        &self,
        journey: &mut Journey,
        metadata: &MetadataMap,
        caller: &Caller,
    ) -> Result<ModelInferResponse, FrontError> {
        loop {
            let changes = Changes::of(&self.dispatcher.routes, &self.directory);
            match self.place(&journey.full_name)? {
                Place::Here(model) => {
                    journey.seat = None;
                    // Otherwise it was just removed: it moved to another host, or is paused.
                    if let Some(response) = self.answer_here(&model, journey).await? {
                        return Ok(response);
                    }
                }
                Place::There { full_name, entries } => {
                    journey.counted_as = None;
                    let passed_on = self.pass_on(&entries, journey, metadata, caller);
                    match passed_on.await? {
                        Ok(response) => return Ok(response),
                        Err(setback) => {
                            let waiting = &self.waiting;
                            waiting
                                .for_entry(&full_name, setback, journey, changes)
                                .await?;
                        }
                    }
                }
                Place::Wait(waited) => self.waiting.for_model(waited, journey, changes).await?,
            }
        }
    }

    async fn answer_here(
        &self,
        model: &Model,
        journey: &mut Journey,
    ) -> Result<Option<ModelInferResponse>, FrontError> {
        let Some(answered) = self.dispatcher.answer(model, journey).await? else {
            return Ok(None);
        };
        let name = journey.request.model_name.clone();
        output::response(name, journey.id.clone(), answered).map(Some)
    }

    /// Send the full name, since a short one may mean another model elsewhere.
    async fn pass_on(
        &self,
        entries: &[Hop],
        journey: &Journey,
        metadata: &MetadataMap,
        caller: &Caller,
    ) -> Result<Result<ModelInferResponse, Setback>, FrontError> {
        let deadline = journey.tries.deadline;
        let passed_on = self.relay.first(entries, deadline, |mut client| {
            let mut request = journey.request.clone();
            request.model_name.clone_from(&journey.full_name);
            request.id.clone_from(&journey.id);
            let request = marked(request, metadata, deadline, caller);
            async move { client.model_infer(request).await }
        });
        let named = |mut response: ModelInferResponse| {
            response.model_name.clone_from(&journey.request.model_name);
            response
        };
        Ok(passed_on.await?.map(named))
    }

    fn count<T>(&self, journey: &Journey, outcome: &Result<T, FrontError>) {
        let outcome = match outcome {
            Ok(_) => Outcome::Answered,
            Err(error) if is_clients_doing(error) => return,
            Err(_) => Outcome::Failed,
        };
        if let Some(key) = journey.counted_as.clone() {
            let (took, uid) = (journey.began.elapsed(), &key.placement_uid);
            let is_here = |uid: &str| self.dispatcher.routes.has(uid);
            match outcome {
                Outcome::Answered => {
                    let (statistics, spent) = (&self.statistics, journey.spent);
                    statistics.answered(uid, took, spent, now_ms(), is_here);
                }
                Outcome::Failed => self.statistics.failed(uid, took, is_here),
            }
            let sample = RequestSample {
                rows_by_exit: journey.rows_by_exit.clone(),
                rows: journey.rows,
                outcome,
                latency_s: took.as_secs_f64(),
                retried: journey.tries.failed,
            };
            self.dispatcher
                .forwarder
                .telemetry
                .request_done(key, sample);
        }
    }

    /// Whether this agent accepts requests at all.
    pub(crate) fn is_ready(&self) -> bool {
        *self.ready.borrow()
    }

    /// Whether a model serves, here or elsewhere.
    ///
    /// # Errors
    /// Why it does not.
    pub(crate) async fn check_ready(
        &self,
        name: &str,
        version: &str,
        caller: &Caller,
    ) -> Result<(), FrontError> {
        check_version(name, version)?;
        let full_name = self.asked_for(caller, name).await?;
        match self.place(&full_name)? {
            Place::Here(_) | Place::There { .. } => Ok(()),
            Place::Wait(Waited::Operator { name }) => Err(FrontError::Unheard(name)),
            Place::Wait(Waited::Model { full_name, .. }) => Err(FrontError::NotServing(full_name)),
        }
    }

    /// Inputs and outputs of a model, from its entry.
    ///
    /// # Errors
    /// There is no such model, or it does not serve.
    pub(crate) async fn metadata_of(
        &self,
        asked: ModelMetadataRequest,
        metadata: &MetadataMap,
        deadline: Deadline,
        caller: &Caller,
    ) -> Result<ModelMetadataResponse, FrontError> {
        let here = |model: &Model| self.described(asked.name.clone(), model);
        let asking = Asking {
            name: &asked.name,
            version: &asked.version,
            metadata,
            deadline,
            caller,
        };
        let told = self.told_by_entry::<ModelMetadataRequest>(&asking, here);
        let mut told = told.await?;
        told.name = asked.name;
        Ok(told)
    }

    /// Statistics of a model, from its entry; without a name, of the models that enter here
    /// and that the caller may use.
    ///
    /// # Errors
    /// There is no such model, or it does not serve.
    pub(crate) async fn statistics_of(
        &self,
        asked: ModelStatisticsRequest,
        metadata: &MetadataMap,
        deadline: Deadline,
        caller: &Caller,
    ) -> Result<ModelStatisticsResponse, FrontError> {
        if asked.name.is_empty() {
            return self.statistics_of_all(caller).await;
        }
        let here = |model: &Model| {
            let counts = self.statistics.of(&model.placement_uid);
            Ok(ModelStatisticsResponse {
                model_stats: vec![counts.rendered(asked.name.clone())],
            })
        };
        let asking = Asking {
            name: &asked.name,
            version: &asked.version,
            metadata,
            deadline,
            caller,
        };
        let told = self.told_by_entry::<ModelStatisticsRequest>(&asking, here);
        let mut told = told.await?;
        for one in &mut told.model_stats {
            one.name.clone_from(&asked.name);
        }
        Ok(told)
    }

    async fn statistics_of_all(
        &self,
        caller: &Caller,
    ) -> Result<ModelStatisticsResponse, FrontError> {
        let routes = &self.dispatcher.routes;
        let names = routes.names().into_iter().collect();
        let names = self.access.visible(caller, None, names).await?;
        let one = |name: String| match self.place(&name) {
            Ok(Place::Here(model)) => {
                let counts = self.statistics.of(&model.placement_uid);
                Some(counts.rendered(name))
            }
            _ => None,
        };
        Ok(ModelStatisticsResponse {
            model_stats: names.into_iter().filter_map(one).collect(),
        })
    }

    /// The result of `here` if this agent is the model's entry, otherwise the entry's answer.
    async fn told_by_entry<Q: Question>(
        &self,
        asking: &Asking<'_>,
        here: impl FnOnce(&Model) -> Result<Q::Answer, FrontError>,
    ) -> Result<Q::Answer, FrontError> {
        let Asking {
            name,
            version,
            metadata,
            deadline,
            caller,
        } = *asking;
        check_version(name, version)?;
        let full_name = self.asked_for(caller, name).await?;
        let place = if metadata.contains_key(FORWARDED) {
            self.place_of_forwarded(&full_name)?
        } else {
            self.place(&full_name)?
        };
        match place {
            Place::Here(model) => here(&model),
            Place::There { full_name, entries } => {
                let send = |client| {
                    let question = Q::about(full_name.clone(), version.to_owned());
                    Q::ask(client, marked(question, metadata, deadline, caller))
                };
                let told = self.relay.first(&entries, deadline, send).await?;
                told.map_err(|_| FrontError::NotServing(full_name.clone()))
            }
            Place::Wait(_) => Err(FrontError::NotServing(name.to_owned())),
        }
    }

    /// The models that the caller may use, and whether they serve.
    ///
    /// # Errors
    /// That cannot be determined.
    pub(crate) async fn index(
        &self,
        asked: RepositoryIndexRequest,
        caller: &Caller,
    ) -> Result<RepositoryIndexResponse, FrontError> {
        let RepositoryIndexRequest {
            repository_name,
            ready,
        } = asked;
        let directory = self.directory.now();
        let mut names: BTreeSet<String> = self.dispatcher.routes.names().into_iter().collect();
        names.extend(directory.names().cloned());
        let namespace = Some(repository_name.as_str()).filter(|name| !name.is_empty());
        let names = self.access.visible(caller, namespace, names).await?;
        let line = |name: String| {
            let listed = directory.get(&name);
            let place = self.place(&name);
            index::line(name, &place, listed)
        };
        let lines = names.into_iter().map(line);
        Ok(RepositoryIndexResponse {
            models: lines
                .filter(|line| !ready || line.state == index::READY)
                .collect(),
        })
    }

    /// Inputs and outputs of the active revision.
    fn described(&self, name: String, model: &Model) -> Result<ModelMetadataResponse, FrontError> {
        let active = model.active.as_ref();
        let active = active.ok_or_else(|| FrontError::NotServing(model.full_name.clone()))?;
        let properties = [
            ("lamina_entry", self.node().to_owned()),
            ("lamina_placement_revision", active.revision.to_string()),
        ];
        Ok(ModelMetadataResponse {
            name,
            versions: vec![VERSION.to_owned()],
            platform: "pytorch_torchscript".to_owned(),
            inputs: described(&active.inputs),
            outputs: described(&active.outputs),
            properties: properties
                .map(|(key, value)| (key.to_owned(), value))
                .into(),
        })
    }
}

/// The client of a question, and its model.
#[derive(Clone, Copy)]
struct Asking<'a> {
    name: &'a str,
    version: &'a str,
    metadata: &'a MetadataMap,
    deadline: Deadline,
    caller: &'a Caller,
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let millis = since.map_or(0, |since| since.as_millis());
    u64::try_from(millis).unwrap_or(u64::MAX)
}

fn check_version(model: &str, version: &str) -> Result<(), FrontError> {
    if version.is_empty() || version == VERSION {
        return Ok(());
    }
    Err(FrontError::Version {
        model: model.to_owned(),
        version: version.to_owned(),
    })
}

/// The sender of `request`, as authenticated before it was read.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::unauthenticated("nobody said who calls"))
}

const fn is_clients_doing(error: &FrontError) -> bool {
    matches!(error.code(), Code::InvalidArgument | Code::Unimplemented)
}

fn described(specs: &[ValueSpec]) -> Vec<TensorMetadata> {
    specs
        .iter()
        .map(|spec| TensorMetadata {
            name: spec.name.clone(),
            datatype: spec.public_datatype().to_owned(),
            shape: spec.public_shape(),
        })
        .collect()
}

#[tonic::async_trait]
impl GrpcInferenceService for Front {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = self.is_ready();
        Ok(Response::new(ServerReadyResponse { ready }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let caller = caller(&request)?;
        let ModelReadyRequest { name, version } = request.into_inner();
        let ready = match self.check_ready(&name, &version, &caller).await {
            Ok(()) => true,
            Err(denied @ FrontError::Denied(_)) => return Err(denied.into()),
            Err(_) => false,
        };
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: SERVER_NAME.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.map(str::to_owned).into(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let caller = caller(&request)?;
        let (metadata, _, asked) = request.into_parts();
        let response = self.metadata_of(asked, &metadata, deadline, &caller);
        Ok(Response::new(response.await?))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let caller = caller(&request)?;
        let (metadata, _, ModelConfigRequest { name, version }) = request.into_parts();
        let asked = ModelMetadataRequest { name, version };
        let model = self.metadata_of(asked, &metadata, deadline, &caller);
        let config = Some(config(model.await?));
        Ok(Response::new(ModelConfigResponse { config }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let caller = caller(&request)?;
        let (metadata, extensions, request) = request.into_parts();
        let patience = patience(&request).map_err(FrontError::from)?;
        let deadline = Deadline::of_request(&metadata, patience);
        let response = self.infer(request, &metadata, deadline, &caller).await?;
        if let Some(told) = extensions.get::<AnswerBytes>() {
            told.are(output::bytes_of(&response));
        }
        Ok(Response::new(response))
    }

    type ModelStreamInferStream = BoxStream<'static, Result<ModelStreamInferResponse, Status>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let turns = request.extensions().get::<Turns>().cloned();
        let (metadata, _, messages) = request.into_parts();
        let turns = turns.unwrap_or_default();
        let answers = stream::answers(self.clone(), metadata, turns, messages);
        Ok(Response::new(answers.boxed()))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let deadline = Deadline::of(request.metadata());
        let caller = caller(&request)?;
        let (metadata, _, asked) = request.into_parts();
        let response = self.statistics_of(asked, &metadata, deadline, &caller);
        Ok(Response::new(response.await?))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let caller = caller(&request)?;
        let response = self.index(request.into_inner(), &caller).await?;
        Ok(Response::new(response))
    }

    async fn repository_model_load(
        &self,
        _: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        Err(FrontError::Repository.into())
    }

    async fn repository_model_unload(
        &self,
        _: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        Err(FrontError::Repository.into())
    }
}
