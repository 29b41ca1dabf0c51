//! Early exits for strategies: how many requests leave where.

use lamina_model::{Exit, Manifest};
use lamina_placement as placement;

/// Share of all requests that leave at each exit of `manifest`, including the last, as measured
/// when the model was exported. `threshold` gives the threshold in force at an exit, `None` if no
/// request leaves. Empty if the model has no exits, or nothing was measured.
pub fn expected_shares(manifest: &Manifest, threshold: impl Fn(&Exit) -> Option<f64>) -> Vec<f64> {
    let exits = manifest.exits.as_slice();
    let [side @ .., _] = exits else {
        return Vec::new();
    };
    let as_exported = side.iter().all(|e| threshold(e) == e.threshold);
    let told: Option<Vec<f64>> = exits
        .iter()
        .map(|e| Some(e.expected.as_ref()?.exit_rate))
        .collect();
    if let (true, Some(told)) = (as_exported, told) {
        return told;
    }
    let mut left = 0.0;
    let mut shares = Vec::with_capacity(exits.len());
    for exit in side {
        let sure = match threshold(exit) {
            Some(threshold) => match alone(exit, threshold) {
                Some(sure) => sure,
                None => return Vec::new(),
            },
            None => 0.0,
        };
        // A request that is confident early is confident later too.
        let leaves = (sure - left).max(0.0);
        left += leaves;
        shares.push(leaves);
    }
    shares.push((1.0 - left).max(0.0));
    shares
}

/// Share that is confident enough at `exit`, by the row of its table with the nearest threshold.
fn alone(exit: &Exit, threshold: f64) -> Option<f64> {
    let distance = |row: &&lamina_model::ExitRow| (row.threshold - threshold).abs();
    let nearest = exit
        .table
        .iter()
        .min_by(|a, b| distance(a).total_cmp(&distance(b)));
    nearest.map(|row| row.exit_rate)
}

/// The side exits of `manifest` for a workload, at which `shares` of all requests leave. Those of
/// one block count as one, those of the last block as the end.
pub fn exits(manifest: &Manifest, shares: &[f64]) -> Vec<placement::Exit> {
    let mut exits: Vec<placement::Exit> = Vec::new();
    let [side @ .., _] = manifest.exits.as_slice() else {
        return exits;
    };
    let mut reaching = 1.0;
    for (exit, share) in side.iter().zip(shares) {
        let rate = if reaching > 0.0 {
            (share / reaching).clamp(0.0, 1.0)
        } else {
            0.0
        };
        reaching -= rate * reaching;
        let after_block = usize::try_from(exit.block).unwrap_or(usize::MAX);
        if after_block.saturating_add(1) >= manifest.blocks.len() {
            break;
        }
        if let Some(before) = exits.last_mut()
            && before.after_block >= after_block
        {
            for row in &mut before.table {
                row.rate += (1.0 - row.rate) * rate;
            }
            continue;
        }
        let output = manifest.outputs.iter().find(|v| v.name == exit.output);
        let accuracy = exit.expected.as_ref().and_then(|e| e.accuracy);
        exits.push(placement::Exit {
            after_block,
            reply_bytes: output.and_then(|v| v.bytes(1)).unwrap_or(0),
            table: vec![placement::ExitPoint {
                threshold: exit.threshold.unwrap_or(1.0),
                rate,
                accuracy: accuracy.unwrap_or(1.0),
            }],
        });
    }
    exits
}
