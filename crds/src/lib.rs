//! Kubernetes types of Lamina: DnnModel, ComputeNode, Placement.
