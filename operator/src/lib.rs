//! The operator: watches models and hosts, places, deploys, moves.
