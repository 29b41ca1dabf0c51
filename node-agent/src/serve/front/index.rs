//! An entry of the model index. Pure.

use super::error::FrontError;
use super::output::VERSION;
use super::place::Place;
use crate::serve::directory::Listed;
use lamina_proto::inference::repository_index_response::ModelIndex;

/// The protocol's state of a model that serves.
pub(super) const READY: &str = "READY";
const LOADING: &str = "LOADING";
const UNAVAILABLE: &str = "UNAVAILABLE";

/// For a model whose requests go to `place`.
pub(super) fn line(
    full_name: String,
    place: &Result<Place, FrontError>,
    listed: Option<&Listed>,
) -> ModelIndex {
    let why = || listed.map(|l| l.reason.clone()).unwrap_or_default();
    let (state, reason) = match place {
        Ok(Place::Here(_) | Place::There { .. }) => (READY, String::new()),
        Ok(Place::Wait(_)) => (LOADING, why()),
        Err(error) => (UNAVAILABLE, error.to_string()),
    };
    ModelIndex {
        name: full_name,
        version: VERSION.to_owned(),
        state: state.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::super::place::Waited;
    use super::*;

    #[test]
    fn a_model_on_its_way_says_how_far_it_is() {
        let listed = Listed {
            reason: "Preparing".into(),
            coming: true,
            ..Listed::default()
        };
        let name = || "a/m".to_owned();
        let waited = Waited::Operator { name: name() };
        let there = Place::There {
            full_name: name(),
            entries: Vec::new(),
        };
        let failed = FrontError::NotServing(name());
        for (place, state, reason) in [
            (Ok(there), READY, ""),
            (Ok(Place::Wait(waited)), LOADING, "Preparing"),
            (Err(failed.clone()), UNAVAILABLE, &failed.to_string()),
        ] {
            let line = line(name(), &place, Some(&listed));
            assert_eq!((line.name.as_str(), line.version.as_str()), ("a/m", "1"));
            assert_eq!((line.state.as_str(), line.reason.as_str()), (state, reason));
        }
    }
}
