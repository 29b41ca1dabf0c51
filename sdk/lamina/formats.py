"""Recognizes model files, and says how to convert those that Lamina does not serve."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

PROGRAM = "program"
"""A file of `torch.export.save`."""

_TORCHSCRIPT = (
    "is TorchScript already and needs no export: lamina-node-agent prepare {path} --input …"
)
_WEIGHTS = (
    "holds weights without a network: build the network in Python, load them with "
    "load_state_dict, and torch.export.save(torch.export.export(network.eval(), example), "
    "'model.pt2')"
)
_PICKLE = (
    "is a pickle of torch.save, weights or a Python object: load it in Python where its classes "
    "are, and torch.export.save(torch.export.export(network.eval(), example), 'model.pt2')"
)
_ONNX = "is ONNX: python -m lamina export onnx {path} makes a TorchScript file of it"
_KERAS = (
    "is HDF5, as Keras writes: export it to ONNX with tf2onnx, and that with python -m lamina "
    "export onnx"
)
_TFLITE = (
    "is TensorFlow Lite: export the TensorFlow model that it was made of to ONNX with tf2onnx, "
    "and that with python -m lamina export onnx"
)
_HF = (
    "is a folder of Hugging Face: python -m lamina export hf {path} --task … makes a TorchScript "
    "file of its network"
)
_FOLDER = "is a folder: name the file in it"

_MARKS = (
    (0, b"\x89HDF\r\n\x1a\n", _KERAS),
    (4, b"TFL3", _TFLITE),
    (0, b"\x80\x02\x8a\nl\xfc\x9cF\xf9", _PICKLE),  # torch.save before PyTorch 1.6
)
"""Where files say what they are."""

_SUFFIXES = {
    ".onnx": _ONNX,
    ".safetensors": _WEIGHTS,
    ".h5": _KERAS,
    ".keras": _KERAS,
    ".tflite": _TFLITE,
}
"""Names that say it where the bytes do not."""


def advice(path: str | os.PathLike[str]) -> str | None:
    """What to do with a file that is no program; None if it is one, or unknown.

    Raises:
        OSError: if it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        text = _HF if (path / "config.json").is_file() else _FOLDER
        return text.format(path=path)
    with path.open("rb") as file:
        head = file.read(64)
    found = next((text for at, mark, text in _MARKS if head[at:].startswith(mark)), None)
    if found is None:
        found = _of_archive(_names(path))
        if found == PROGRAM:
            return None
    found = found or _SUFFIXES.get(path.suffix.lower())
    return None if found is None else found.format(path=str(path))


def _names(path: Path) -> list[str]:
    """The names in a zip archive; none unless it is complete."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):
        return []
    # Half of an archive may end in a complete one stored inside.
    is_whole = any(entry.header_offset == 0 for entry in entries)
    return [entry.filename for entry in entries] if is_whole else []


def _of_archive(names: list[str]) -> str | None:
    inner = {name.partition("/")[2] or name for name in names}
    if "archive_format" in inner or "serialized_exported_program.json" in inner:
        return PROGRAM
    if "constants.pkl" in inner and any(name.startswith("code/") for name in inner):
        return _TORCHSCRIPT
    return _PICKLE if "data.pkl" in inner else None
