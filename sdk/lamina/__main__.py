"""`python -m lamina`."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lamina.datatypes import NAMES
from lamina.errors import ExportError, LaminaError
from lamina.formats import advice
from lamina.huggingface import IMAGE, LENGTH, TASKS, export_hf
from lamina.onnx import export_onnx
from lamina.program import Declared, export_program
from lamina.sampling import from_numpy, samples

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.export import ExportedProgram

    from lamina.program import ProgramReport

DONE, FAILED = 0, 1
"""Exit codes; argparse's for a wrong command line is 2."""

_INPUT = re.compile(
    r"(?P<name>.+):(?P<datatype>[A-Z]+[0-9]*):(?P<shape>(?:-?\d+(?:x-?\d+)*)?)"
    r"(?::(?P<low>[^:]+):(?P<high>[^:]+))?"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code."""
    given = _parser().parse_args(_joined(sys.argv[1:] if arguments is None else arguments))
    try:
        print(given.run(given))
        return DONE
    except (LaminaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED


def _joined(arguments: Sequence[str]) -> list[str]:
    """Joins `export hf` to one word: the argument of `export` alone is a file."""
    command, rest = " ".join(arguments[:2]), list(arguments[2:])
    return [command, *rest] if command in _FORMATS else list(arguments)


_HF = "export hf"
_ONNX = "export onnx"
_FORMATS = (_HF, _ONNX)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lamina", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    export = commands.add_parser(
        "export",
        help="write a file of torch.export as TorchScript that Lamina serves",
        description="Writes a file of torch.export.save as a TorchScript file that Lamina serves. "
        "What is free in it stays free. The two are compared, bit for bit, before the file is "
        "written: at the example, on other values, and at two other sizes of each that is free.",
        epilog="Exit codes: 0 written, 1 not, 2 the command line is wrong.",
    )
    _add_files(export, "the program, such as model.pt2")
    _add_inputs(export)
    _add_json(export)
    export.set_defaults(run=_export)
    _add_hf(commands)
    _add_onnx(commands)
    _add_samples(commands)
    return parser


def _add_hf(commands: Any) -> None:  # noqa: ANN401 - argparse does not name its type
    hf = commands.add_parser(
        _HF,
        help="write a folder of Hugging Face (config.json, safetensors) likewise",
        description="Writes the network of a folder, as save_pretrained makes it, as a TorchScript "
        "file that Lamina serves, and compares the two, bit for bit. Nothing is fetched, no code "
        "of the folder is run. Needs the extra lamina[hf].",
        epilog="Exit codes: 0 written, 1 not, 2 the command line is wrong.",
    )
    hf.add_argument("folder", type=Path, help="with config.json and safetensors")
    hf.add_argument("--task", required=True, choices=TASKS, help="what the network answers")
    hf.add_argument("-o", "--out", type=Path, help="the file to write; FOLDER.pt if left out")
    hf.add_argument(
        "--length",
        type=int,
        help=f"tokens that a text typically has; {LENGTH} at most if left out",
    )
    hf.add_argument(
        "--image",
        type=_image,
        metavar="ROWSxCOLUMNS",
        help="size of an image; the folder's if left out, or {}x{}".format(*IMAGE),
    )
    _add_json(hf)
    hf.set_defaults(run=_export_hf)


def _add_onnx(commands: Any) -> None:  # noqa: ANN401
    onnx = commands.add_parser(
        _ONNX,
        help="write a file of ONNX likewise",
        description="Writes a file of ONNX as a TorchScript file that Lamina serves: a network by "
        "onnx2pytorch, which is written and compared as one of torch.export, and compared with "
        "ONNX Runtime as well. Sizes that the file leaves free stay free. Needs the extra "
        "lamina[onnx].",
        epilog="Exit codes: 0 written, 1 not, 2 the command line is wrong.",
    )
    _add_files(onnx, "such as model.onnx")
    _add_inputs(onnx)
    _add_json(onnx)
    onnx.set_defaults(run=_export_onnx)


def _add_samples(commands: Any) -> None:  # noqa: ANN401
    several = commands.add_parser(
        "samples",
        help="write requests in files of numpy.savez as the file that spec.samples names",
        description="Writes a file of safetensors for spec.samples, and prints its line. Each "
        ".npz holds one request: an array for each input, under its name.",
        epilog="Exit codes: 0 written, 1 not, 2 the command line is wrong.",
    )
    several.add_argument("files", type=Path, nargs="+", metavar="REQUEST.npz", help="2 to 16")
    several.add_argument("-o", "--out", type=Path, required=True, help="such as a.safetensors")
    several.set_defaults(run=_samples)


def _add_files(command: argparse.ArgumentParser, file: str) -> None:
    command.add_argument("file", type=Path, help=file)
    command.add_argument(
        "-o", "--out", type=Path, help="the file to write; FILE with .pt at the end if left out"
    )


def _add_inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input",
        dest="inputs",
        type=_declared,
        action="append",
        default=[],
        metavar="NAME:DATATYPE:SHAPE[:MIN:MAX]",
        help="name and range of an input, such as ids:INT64:-1x128:0:30521; once for each, in "
        "order, or for none: then the program's names and its example's values are taken",
    )


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="the report as JSON")


def _image(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no ROWSxCOLUMNS, such as 224x224")
    return int(found[1]), int(found[2])


def _declared(text: str) -> Declared:
    found = _INPUT.fullmatch(text)
    if found is None or found["datatype"] not in NAMES.values():
        raise argparse.ArgumentTypeError(
            f"{text!r} is no NAME:DATATYPE:SHAPE[:MIN:MAX], such as image:FP32:-1x3x224x224"
        )
    shape = tuple(int(size) for size in found["shape"].split("x") if size)
    if any(size < -1 for size in shape):
        raise argparse.ArgumentTypeError(f"{text!r}: sizes are 0 or more, or -1 for any")
    low, high = (None if found[n] is None else _bound(found[n]) for n in ("low", "high"))
    if low is not None and high is not None and low > high:
        raise argparse.ArgumentTypeError(f"{text!r}: the range {low:g}:{high:g} is empty")
    return Declared(found["name"], found["datatype"], shape, low, high)


def _bound(text: str) -> float:
    try:
        bound = float(text)
    except ValueError:
        bound = float("nan")
    if not abs(bound) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number")
    return bound


def _export(given: argparse.Namespace) -> str:
    out = _out(given)
    return _shown(export_program(_load(given.file), out, inputs=given.inputs), given)


def _out(given: argparse.Namespace) -> Path:
    """The file to write, which must not be one that is read."""
    out: Path = given.out or given.file.with_suffix(".pt")
    if out.exists() and out.samefile(given.file):
        raise ExportError(f"{out} would overwrite what it is made of: name another file with -o")
    return out


def _shown(report: ProgramReport, given: argparse.Namespace) -> str:
    return report.to_json() if given.json else report.to_text()


def _samples(given: argparse.Namespace) -> str:
    sha256 = samples(given.out, from_numpy(given.files))
    return f"samples: {{uri: …/{given.out.name}, sha256: {sha256}}}"


def _export_hf(given: argparse.Namespace) -> str:
    folder = given.folder.resolve()
    out = given.out or folder.with_name(f"{folder.name}.pt")
    report = export_hf(given.folder, out, given.task, length=given.length, image=given.image)
    return _shown(report, given)


def _export_onnx(given: argparse.Namespace) -> str:
    return _shown(export_onnx(given.file, _out(given), inputs=given.inputs), given)


def _load(path: Path) -> ExportedProgram:
    """Reads a program.

    Raises:
        ExportError: if the file is no program; the message says what to do with it.
        OSError: if it cannot be read.
    """
    other = advice(path)
    if other is not None:
        raise ExportError(f"{path} {other}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about torch's internals
            return torch.export.load(path)
    except Exception as error:  # from any reader of the archive's parts
        first = str(error).strip().partition("\n")[0] or type(error).__name__
        raise ExportError(
            f"{path} is no file of torch.export.save that PyTorch {torch.__version__} reads: "
            f"{first}; save it with PyTorch 2.13 or older, from a network on the CPU"
        ) from error


if __name__ == "__main__":
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    sys.exit(main())
