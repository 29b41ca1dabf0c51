//! The time-out in a client's request.

use super::error::InputError;
use lamina_proto::inference::ModelInferRequest;
use lamina_proto::inference::infer_parameter::ParameterChoice;
use std::time::Duration;

/// Microseconds, under the name that common clients use; 0 means none.
const TIMEOUT: &str = "timeout";

/// The time-out of `request`, if it has one.
///
/// # Errors
/// The value is not a time.
pub(crate) fn patience(request: &ModelInferRequest) -> Result<Option<Duration>, InputError> {
    let given = request.parameters.get(TIMEOUT);
    let Some(given) = given.and_then(|p| p.parameter_choice.as_ref()) else {
        return Ok(None);
    };
    let micros = match given {
        ParameterChoice::Int64Param(micros) => u64::try_from(*micros).ok(),
        ParameterChoice::Uint64Param(micros) => Some(*micros),
        _ => None,
    };
    let micros = micros.ok_or(InputError::Timeout)?;
    Ok((micros > 0).then_some(Duration::from_micros(micros)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lamina_proto::inference::InferParameter;

    fn said(choice: Option<ParameterChoice>) -> Result<Option<Duration>, InputError> {
        let parameter = InferParameter {
            parameter_choice: choice,
        };
        patience(&ModelInferRequest {
            parameters: [(TIMEOUT.to_owned(), parameter)].into(),
            ..ModelInferRequest::default()
        })
    }

    #[test]
    fn microseconds_are_read_whatever_their_kind() {
        let five = Some(Duration::from_micros(5));
        assert_eq!(said(Some(ParameterChoice::Int64Param(5))), Ok(five));
        assert_eq!(said(Some(ParameterChoice::Uint64Param(5))), Ok(five));
        assert_eq!(said(Some(ParameterChoice::Int64Param(0))), Ok(None));
        assert_eq!(said(None), Ok(None));
        assert_eq!(patience(&ModelInferRequest::default()), Ok(None));
    }

    #[test]
    fn anything_else_is_no_time() {
        for choice in [
            ParameterChoice::Int64Param(-1),
            ParameterChoice::BoolParam(true),
            ParameterChoice::DoubleParam(1.0),
            ParameterChoice::StringParam("5".into()),
        ] {
            assert_eq!(said(Some(choice)), Err(InputError::Timeout));
        }
    }
}
