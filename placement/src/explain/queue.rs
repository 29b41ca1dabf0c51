//! How long requests wait, estimated from utilisation.

/// Seconds that a request waits for one of `lanes` that each take `service` seconds, at the given
/// utilisation: Sakasegawa's approximation ("An approximation formula L_q ≈ αρ^β/(1-ρ)", 1977),
/// halved because a block takes the same time for every request while requests arrive at random
/// (Pollaczek and Khinchine). Infinite if there is more work than time.
pub(super) fn waiting_seconds(service_seconds: f64, utilisation: f64, lanes: u32) -> f64 {
    if service_seconds <= 0.0 || utilisation <= 0.0 {
        return 0.0;
    }
    if utilisation >= 1.0 {
        return f64::INFINITY;
    }
    let lanes = f64::from(lanes.max(1));
    let exponent = (2.0 * (lanes + 1.0)).sqrt() - 1.0;
    service_seconds * utilisation.powf(exponent) / (2.0 * lanes * (1.0 - utilisation))
}
