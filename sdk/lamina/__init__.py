"""Multi-exit networks for Lamina: compose, train, learn thresholds, export.

    model = lamina.MultiExit(stages, {0: head, 2: head, 3: head})
    lamina.train(model, batches, epochs=20)
    outputs = lamina.collect(model, validation)
    policy = lamina.thresholds_for_accuracy(outputs, 0.97)
    lamina.export(model, "model.pt", example, policy=policy, validation=outputs)

An ordinary TorchScript file needs none of this. A program of `torch.export` is converted:

    lamina.export_program(torch.export.load("model.pt2"), "model.pt")

and so is a Hugging Face folder, or an ONNX file:

    lamina.export_hf("bert", "bert.pt", "text-classification")
    lamina.export_onnx("model.onnx", "model.pt")
"""

from lamina.calibration import expected_calibration_error, fit_temperature
from lamina.criterion import Criterion
from lamina.errors import (
    ArgumentError,
    CompositionError,
    ExportError,
    LaminaError,
    MetadataError,
    TargetError,
)
from lamina.evaluation import (
    Evaluation,
    ExitOutputs,
    ExitShare,
    ExitTableRow,
    collect,
    evaluate,
    exit_table,
    format_evaluation,
    format_table,
)
from lamina.exporting import export
from lamina.huggingface import export_hf
from lamina.loss import joint_loss
from lamina.metadata import Metadata, read_metadata
from lamina.model import Exit, ExitPlace, MultiExit, Stage
from lamina.onnx import export_onnx
from lamina.policy import Policy
from lamina.program import Declared, ProgramReport, export_program
from lamina.sampling import samples
from lamina.thresholds import thresholds_for_accuracy, thresholds_for_exit_rates
from lamina.training import Epoch, train
from lamina.vision import from_torchvision
from lamina.walking import Prediction, flops_to_exits, predict

__all__ = [
    "ArgumentError",
    "CompositionError",
    "Criterion",
    "Declared",
    "Epoch",
    "Evaluation",
    "Exit",
    "ExitOutputs",
    "ExitPlace",
    "ExitShare",
    "ExitTableRow",
    "ExportError",
    "LaminaError",
    "Metadata",
    "MetadataError",
    "MultiExit",
    "Policy",
    "Prediction",
    "ProgramReport",
    "Stage",
    "TargetError",
    "collect",
    "evaluate",
    "exit_table",
    "expected_calibration_error",
    "export",
    "export_hf",
    "export_onnx",
    "export_program",
    "fit_temperature",
    "flops_to_exits",
    "format_evaluation",
    "format_table",
    "from_torchvision",
    "joint_loss",
    "predict",
    "read_metadata",
    "samples",
    "thresholds_for_accuracy",
    "thresholds_for_exit_rates",
    "train",
]
