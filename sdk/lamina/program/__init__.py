"""Converts a program of `torch.export` to a TorchScript file that Lamina serves."""

from lamina.program.arguments import Declared, shapes
from lamina.program.converting import export_program, said
from lamina.program.report import Check, FreeSize, InputReport, OutputReport, ProgramReport

__all__ = [
    "Check",
    "Declared",
    "FreeSize",
    "InputReport",
    "OutputReport",
    "ProgramReport",
    "export_program",
    "said",
    "shapes",
]
