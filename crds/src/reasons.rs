//! Reasons of Events and conditions: a stable interface for people's alerts.

/// Normal: the model's file is here and its hash is right.
pub const MODEL_FETCHED: &str = "ModelFetched";
/// Normal: the model was cut.
pub const MODEL_SLICED: &str = "ModelSliced";
/// Normal: every block was measured.
pub const MODEL_PROFILED: &str = "ModelProfiled";
/// Normal: a placement was found.
pub const PLACEMENT_SOLVED: &str = "PlacementSolved";
/// Normal: hosts are loading a new revision.
pub const REDEPLOY_STARTED: &str = "RedeployStarted";
/// Normal: the new revision serves.
pub const REDEPLOY_COMPLETED: &str = "RedeployCompleted";
/// Normal: an agent came for the first time.
pub const NODE_REGISTERED: &str = "NodeRegistered";
/// Normal: an agent that was lost is back.
pub const NODE_RECOVERED: &str = "NodeRecovered";
/// Warning: the source cannot be fetched.
pub const FETCH_FAILED: &str = "FetchFailed";
/// Warning: the source is not the file that the spec names.
pub const CHECKSUM_MISMATCH: &str = "ChecksumMismatch";
/// Warning: the source is no TorchScript file or does not run.
pub const INVALID_MODEL: &str = "InvalidModel";
/// Warning: the declared inputs do not fit the model.
pub const INPUT_MISMATCH: &str = "InputMismatch";
/// Warning: preparing failed for a reason that may pass.
pub const PREPARE_FAILED: &str = "PrepareFailed";
/// Warning: the spec contradicts itself.
pub const INVALID_SPEC: &str = "InvalidSpec";
/// Warning: no placement meets the constraints.
pub const NO_FEASIBLE_PLACEMENT: &str = "NoFeasiblePlacement";
/// Warning: a plugin gave no good answer, and a built-in strategy answered.
pub const STRATEGY_FELL_BACK: &str = "StrategyFellBack";
/// Warning: no host matches the entry selector.
pub const NO_ENTRY_NODE: &str = "NoEntryNode";
/// Warning: a host could not load its slice.
pub const SEGMENT_LOAD_FAILED: &str = "SegmentLoadFailed";
/// Warning: the probe's answer was wrong or did not come.
pub const VERIFY_FAILED: &str = "VerifyFailed";
/// Warning: a link became worse by more than its noise.
pub const LINK_DEGRADED: &str = "LinkDegraded";
/// Normal: a link became better by more than its noise.
pub const LINK_RECOVERED: &str = "LinkRecovered";
/// Warning: no heartbeat from an agent.
pub const NODE_LOST: &str = "NodeLost";
/// Normal: a better placement exists, and moving does not pay.
pub const REDEPLOY_SUPPRESSED: &str = "RedeploySuppressed";
/// Warning: a move measured worse than what it replaced, and was taken back.
pub const ROLLED_BACK: &str = "RolledBack";
/// Warning: what serves breaks a limit that protects data; requests are refused.
pub const REQUESTS_REFUSED: &str = "RequestsRefused";
/// Warning: an object cannot be read; what it asked for before stays in force.
pub const UNREADABLE: &str = "Unreadable";
/// Warning: deciding about a model broke off, which is a bug; what serves of it stays.
pub const DECISION_FAILED: &str = "DecisionFailed";
/// Warning: a model ended the process that opened it; other models go on.
pub const ENGINE_CRASHED: &str = "EngineCrashed";
/// Warning: a host reports of itself what no host can be; nothing is placed there.
pub const IMPOSSIBLE_REPORT: &str = "ImpossibleReport";
/// Warning: a Secret of clients' keys has an entry that is none, or limits that cannot be read.
pub const API_KEY_INVALID: &str = "ApiKeyInvalid";
