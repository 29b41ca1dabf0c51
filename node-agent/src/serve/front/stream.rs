//! Requests on one stream: a few at a time, answered in the order in which they came.

use super::error::FrontError;
use super::output::bytes_of;
use super::patience::patience;
use super::service::Front;
use crate::serve::access::Caller;
use crate::serve::deadline::Deadline;
use crate::serve::guard::Turns;
use futures::stream::{Stream, StreamExt as _};
use lamina_proto::inference::infer_parameter::ParameterChoice;
use lamina_proto::inference::{
    InferParameter, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse,
};
use std::sync::Arc;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status, Streaming};

/// Concurrent requests of one stream. The next one is read after the first of them is answered and
/// its answer was read.
pub(super) const AT_ONCE: usize = 16;
/// Limits the whole stream, if its client sets it.
const TIMEOUT: &str = "grpc-timeout";
/// Tells clients whether more answers to the same request follow: each has only one.
const IS_FINAL: &str = "triton_final_response";
/// The status that the request would have alone, as a number.
const GRPC_STATUS: &str = "lamina_grpc_status";

/// One stream.
struct Call {
    front: Front,
    metadata: MetadataMap,
    ends: Option<Deadline>,
}

/// The answers to `messages`, whose senders are in `turns`. Dropping the stream cancels the work on
/// every host.
pub(super) fn answers(
    front: Front,
    mut metadata: MetadataMap,
    turns: Turns,
    messages: Streaming<ModelInferRequest>,
) -> impl Stream<Item = Result<ModelStreamInferResponse, Status>> {
    let ends = metadata.contains_key(TIMEOUT);
    let ends = ends.then(|| Deadline::of(&metadata));
    metadata.remove(TIMEOUT);
    let call = Arc::new(Call {
        front,
        metadata,
        ends,
    });
    let answered = messages.map(move |message| {
        // In order, before any of them is answered.
        let turn = message.map(|request| (request, turns.next()));
        let call = Arc::clone(&call);
        async move {
            let (request, turn) = turn?;
            let id = request.id.clone();
            let (outcome, charge) = match turn {
                Ok(mut admitted) => {
                    let outcome = match call.answer(request, &admitted.caller).await {
                        Ok(response) => {
                            let room = admitted.answered(bytes_of(&response)).await;
                            room.map(|()| response)
                        }
                        Err(error) => Err(error.into()),
                    };
                    (outcome, Some(admitted))
                }
                Err(refused) => (Err(refused), None),
            };
            Ok::<_, Status>((rendered(id, outcome), charge))
        }
    });
    // A request, and then its answer, is charged until that is taken.
    let answered = answered.buffered(AT_ONCE);
    answered.map(|answer| answer.map(|(answer, _charge)| answer))
}

impl Call {
    async fn answer(
        &self,
        request: ModelInferRequest,
        caller: &Caller,
    ) -> Result<ModelInferResponse, FrontError> {
        let left = self.ends.map(Deadline::left);
        let patience = patience(&request)?.into_iter().chain(left).min();
        let deadline = Deadline::of_request(&self.metadata, patience);
        let answer = self.front.infer(request, &self.metadata, deadline, caller);
        answer.await
    }
}

/// In the stream's form: an error is an answer like any other.
fn rendered(id: String, outcome: Result<ModelInferResponse, Status>) -> ModelStreamInferResponse {
    let (error_message, mut response, more) = match outcome {
        Ok(response) => {
            let is_final = ParameterChoice::BoolParam(true);
            (String::new(), response, (IS_FINAL, is_final))
        }
        Err(status) => {
            let response = ModelInferResponse {
                id,
                ..ModelInferResponse::default()
            };
            let code = ParameterChoice::Int64Param(i32::from(status.code()).into());
            (message_of(&status), response, (GRPC_STATUS, code))
        }
    };
    let (key, choice) = more;
    let parameter = InferParameter {
        parameter_choice: Some(choice),
    };
    response.parameters.insert(key.to_owned(), parameter);
    ModelStreamInferResponse {
        error_message,
        infer_response: Some(response),
    }
}

/// Never empty: that would be an answer.
fn message_of(status: &Status) -> String {
    let code: Code = status.code();
    match status.message() {
        "" => code.description().to_owned(),
        message => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_an_answer_with_the_requests_id_and_its_status() {
        let late = rendered("7".into(), Err(Status::not_found("unknown model `n`")));
        assert_eq!(late.error_message, "unknown model `n`");
        let response = late.infer_response.unwrap();
        assert_eq!((response.id.as_str(), response.outputs.len()), ("7", 0));
        let status = &response.parameters[GRPC_STATUS].parameter_choice;
        assert_eq!(*status, Some(ParameterChoice::Int64Param(5)));
        let silent = rendered(String::new(), Err(Status::cancelled("")));
        assert!(!silent.error_message.is_empty());
    }

    #[test]
    fn an_answer_is_said_to_be_the_only_one() {
        let answer = rendered(String::new(), Ok(ModelInferResponse::default()));
        assert_eq!(answer.error_message, "");
        let response = answer.infer_response.unwrap();
        let is_final = &response.parameters[IS_FINAL].parameter_choice;
        assert_eq!(*is_final, Some(ParameterChoice::BoolParam(true)));
    }
}
