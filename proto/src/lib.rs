//! Wire formats of Lamina: Open Inference Protocol v2, hop, agent to operator, strategy plugins.
