use crate::telemetry::SegmentKey;
use lamina_crds::compute_node::Slice;
use std::collections::BTreeMap;

/// What to do about one slice.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Action {
    /// Fetch, load and serve it.
    Load(Slice),
    /// Keep it loaded; the next host's address or its batching changed.
    Readdress(Slice),
    /// Drop it once the requests inside are done.
    Unload(SegmentKey),
}

/// Key of a slice.
pub(crate) fn key_of(slice: &Slice) -> SegmentKey {
    SegmentKey {
        placement_uid: slice.placement_uid.clone(),
        revision: slice.revision,
        segment: slice.segment,
    }
}

/// The steps from `held` to `wanted`. Slices that failed to load count as held: they do not change
/// until the operator asks for something else.
pub(crate) fn decide(wanted: &[Slice], held: &BTreeMap<SegmentKey, Slice>) -> Vec<Action> {
    let gone = held
        .keys()
        .filter(|key| !wanted.iter().any(|slice| key_of(slice) == **key))
        .cloned()
        .map(Action::Unload);
    let new = wanted
        .iter()
        .filter_map(|slice| match held.get(&key_of(slice)) {
            None => Some(Action::Load(slice.clone())),
            Some(same) if same == slice => None,
            Some(_) => Some(Action::Readdress(slice.clone())),
        });
    gone.chain(new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::slice;

    #[test]
    fn held_slices_change_into_the_wanted_ones() {
        let kept = slice("u", 1, 0);
        let mut moved = slice("u", 1, 2);
        let gone = slice("v", 1, 0);
        let held: BTreeMap<_, _> = [&kept, &moved, &gone]
            .into_iter()
            .map(|s| (key_of(s), s.clone()))
            .collect();
        if let Some(next) = &mut moved.next {
            next.address = "10.0.0.9:8001".into();
        }
        let new = slice("u", 2, 0);
        let wanted = [kept, moved.clone(), new.clone()];
        assert_eq!(
            decide(&wanted, &held),
            [
                Action::Unload(key_of(&gone)),
                Action::Readdress(moved),
                Action::Load(new)
            ]
        );
    }

    #[test]
    fn nothing_is_done_when_nothing_changed() {
        let kept = slice("u", 1, 0);
        let held = BTreeMap::from([(key_of(&kept), kept.clone())]);
        assert_eq!(decide(&[kept], &held), []);
    }
}
