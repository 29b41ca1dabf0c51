"""Converts an ONNX file to a TorchScript file that Lamina serves."""

from lamina.onnx.converting import export_onnx

__all__ = ["export_onnx"]
