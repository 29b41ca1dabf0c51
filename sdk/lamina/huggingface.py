"""Converts Hugging Face folders to programs, and to files that Lamina serves."""

from __future__ import annotations

import contextlib
import inspect
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from lamina.errors import ArgumentError, ExportError
from lamina.extras import needed
from lamina.modes import quiet, silent
from lamina.program import Declared, export_program, said, shapes

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from torch.export import ExportedProgram

    from lamina.program import ProgramReport

LENGTH = 128
"""Tokens of a text where neither the caller nor the network says otherwise."""
IMAGE = (224, 224)
"""Rows and columns of an image, likewise."""
_ROWS = 2
"""Of the example; one is a size of its own for torch.export."""
_SEED = 0
_LONGEST = 1 << 20
"""A tokenizer without a limit has a number beyond it."""


@dataclass(frozen=True)
class _Task:
    """Kind of a network.

    Attributes:
        loader: the class of transformers that builds it.
        outputs: fields of its answer, in order; absent ones are skipped.
    """

    loader: str
    outputs: tuple[str, ...] = ("logits",)


_GENERATION = "text-generation"
_IDS, _MASK, _KINDS = "input_ids", "attention_mask", "token_type_ids"

_TASKS = {
    "text-classification": _Task("AutoModelForSequenceClassification"),
    "token-classification": _Task("AutoModelForTokenClassification"),
    "question-answering": _Task("AutoModelForQuestionAnswering", ("start_logits", "end_logits")),
    "fill-mask": _Task("AutoModelForMaskedLM"),
    _GENERATION: _Task("AutoModelForCausalLM"),
    "feature-extraction": _Task("AutoModel", ("last_hidden_state", "pooler_output")),
    "image-classification": _Task("AutoModelForImageClassification"),
}

TASKS = tuple(_TASKS)
"""Names of the tasks, those of Hugging Face's pipelines."""


def export_hf(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    task: str,
    *,
    length: int | None = None,
    image: tuple[int, int] | None = None,
) -> ProgramReport:
    """Writes a Hugging Face network as a TorchScript file that Lamina serves.

    The file's inputs are those of the folder's tokenizer or image processor, with their names;
    its outputs are the fields of the task. Batch and text length are free if the network leaves
    them free. It is compared with the network, bit for bit, as in `export_program`; weights
    are FP32. Code of the folder is not run, nothing is downloaded.

    Args:
        folder: with `config.json` and weights as safetensors, as written by `save_pretrained`.
        path: of the file, usually `*.pt`.
        task: one of `TASKS`. `text-generation` returns the logits of the token after the last
            one that `attention_mask` keeps, without a cache.
        length: tokens of the example, and of the declared shape.
        image: rows and columns of an image; the folder's own if omitted.

    Raises:
        ArgumentError: if the arguments do not fit the network.
        ExportError: if the conversion fails, with the reason.
        OSError: if a file cannot be read or written.
    """
    folder = Path(folder)
    if task not in _TASKS:
        raise ArgumentError(f"there is no task {task!r}: {', '.join(TASKS)}")
    model = _load(folder, _TASKS[task])
    inputs = _inputs(model, folder, length, image)
    network = _network(model, inputs, task)
    example = _examples(inputs, _ROWS)
    with torch.no_grad(), quiet(), silent():
        program = _program(network, inputs, example)
        if any(shape[0] != -1 for shape in shapes(program)):
            program = _program(network, inputs, _examples(inputs, 1), is_fixed=True)
        report = export_program(program, path, inputs=_declared(inputs, program), network=network)
    return replace(report, notes=(*report.notes, *_notes(model, task)))


@dataclass(frozen=True)
class _Input:
    """An argument of the network.

    Attributes:
        name: of the argument.
        shape: after the batch; that of the example if it is free.
        high: largest value of an integer, from 0 on; None for FP32.
        longest: the largest length; None if no size but the batch is free.
    """

    name: str
    shape: tuple[int, ...]
    high: int | None = None
    longest: int | None = None


class _Network(nn.Module):
    """Takes tensors in the order of `inputs`, and returns only the task's outputs."""

    def __init__(
        self, model: nn.Module, inputs: Sequence[str], outputs: Sequence[str], *, picks_last: bool
    ) -> None:
        super().__init__()
        self.model = model
        self._inputs = tuple(inputs)
        self._outputs = tuple(outputs)
        self._picks_last = picks_last
        taken = inspect.signature(model.forward).parameters
        self._fixed = {k: v for k, v in _FIXED.items() if k in taken}
        self._takes_places = picks_last and "position_ids" in taken

    def forward(self, *values: Tensor) -> dict[str, Tensor]:
        inputs = dict(zip(self._inputs, values, strict=True))
        if not self._picks_last:
            return self._answer(inputs)
        mask = inputs[_MASK]
        if self._takes_places:
            # In texts padded in front, positions count from the first token.
            inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        last = (mask * torch.arange(mask.size(1), device=mask.device)).argmax(1)
        rows = torch.arange(mask.size(0), device=mask.device)
        head = self.model.get_output_embeddings()  # type: ignore[operator]
        # The head is most of a small network's work: it skips the other tokens.
        handle = head.register_forward_pre_hook(lambda _, given: (given[0][rows, last],))
        try:
            return self._answer(inputs)
        finally:
            handle.remove()

    def _answer(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        answer = self.model(**inputs, **self._fixed)
        given = {name: answer.get(name) for name in self._outputs}
        return {name: value for name, value in given.items() if value is not None}


def _network(model: nn.Module, inputs: Sequence[_Input], task: str) -> _Network:
    names = [each.name for each in inputs]
    network = _Network(model, names, _TASKS[task].outputs, picks_last=task == _GENERATION).eval()

    def forward(*values: Tensor) -> dict[str, Tensor]:
        return _Network.forward(network, *values)

    # torch.export names the program's inputs after this.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    network.forward = forward  # type: ignore[method-assign]
    return network.requires_grad_(False)


_FIXED = {"use_cache": False, "return_dict": True}


def _load(folder: Path, task: _Task) -> Any:  # noqa: ANN401 - a class of transformers
    """The network, with all its weights."""
    if not (folder / "config.json").is_file():
        raise ExportError(
            f"{folder} holds no config.json: give a folder that save_pretrained wrote"
        )
    if not any(folder.glob("*.safetensors")):
        raise ExportError(
            f"{folder} holds no safetensors: load it where it comes from, and save it with "
            "save_pretrained of a newer transformers"
        )
    config = json.loads((folder / "config.json").read_text())
    if "quantization_config" in config:
        raise ExportError(f"{folder} holds quantized weights: export the network before that")
    with silent():
        transformers = needed("transformers", "hf")
    try:
        with silent(), _without_bars(transformers.utils.logging):
            model, found = getattr(transformers, task.loader).from_pretrained(
                folder,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except Exception as error:  # from any reader of the folder's parts
        raise ExportError(f"transformers cannot load {folder}: {said(error)}") from error
    missing = sorted(found["missing_keys"]) + sorted(k[0] for k in found["mismatched_keys"])
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ExportError(
            f"{folder} holds no weights for {missing[0]}{more} of {type(model).__name__}: the "
            "network was not trained for this task; name the one that it was trained for"
        )
    for tensor in (*model.parameters(), *model.buffers()):
        # The mapped file has another alignment than a served model, and then some
        # products of one row differ in their last bits.
        tensor.data = tensor.data.clone()
    return model


@contextlib.contextmanager
def _without_bars(logging: Any) -> Iterator[None]:  # noqa: ANN401 - a module of transformers
    """Hides progress bars: a report follows."""
    wanted = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if wanted:
            logging.enable_progress_bar()


def _inputs(
    model: Any,  # noqa: ANN401
    folder: Path,
    length: int | None,
    image: tuple[int, int] | None,
) -> list[_Input]:
    kind = model.main_input_name
    if kind == _IDS:
        if image is not None:
            raise ArgumentError(f"{type(model).__name__} takes texts, no image of {image}")
        return _text_inputs(model, folder, length)
    if kind == "pixel_values":
        if length is not None:
            raise ArgumentError(f"{type(model).__name__} takes images, which have no length")
        rows, columns = image or _image_size(model.config, folder)
        channels = getattr(model.config, "num_channels", 3)
        return [_Input(kind, (channels, rows, columns))]
    raise ExportError(
        f"{type(model).__name__} takes {kind}, which is neither a text nor an image: export "
        "it with torch.export, and that file with `python -m lamina export FILE.pt2`"
    )


def _text_inputs(model: Any, folder: Path, length: int | None) -> list[_Input]:  # noqa: ANN401
    config = model.config.get_text_config()
    tokenizer = _json(folder / "tokenizer_config.json")
    longest = _longest(model, config, tokenizer)
    length = length or min(LENGTH, longest)
    if not 2 <= length <= longest:
        raise ArgumentError(f"a length of {length} is not within 2..={longest}, which it takes")
    kinds = getattr(config, "type_vocab_size", 0)
    largest = {_IDS: config.vocab_size - 1, _MASK: 1, _KINDS: kinds - 1}
    taken = inspect.signature(model.forward).parameters
    # A table of one kind is never read.
    by_default = [_IDS, _MASK, _KINDS] if kinds > 1 else [_IDS, _MASK]
    wanted = {*tokenizer.get("model_input_names", by_default), _IDS, _MASK}
    return [
        _Input(name, (length,), high, longest)
        for name, high in largest.items()
        if name in taken and name in wanted
    ]


def _longest(model: nn.Module, config: Any, tokenizer: Mapping[str, Any]) -> int:  # noqa: ANN401
    """Maximum number of tokens of the network."""
    places = getattr(config, "max_position_embeddings", None) or _LONGEST
    for table in model.modules():
        # Texts begin after the position of the padding, if there is one.
        if isinstance(table, nn.Embedding) and table.num_embeddings == places:
            places -= (table.padding_idx + 1) if table.padding_idx is not None else 0
            break
    said_by_tokenizer = tokenizer.get("model_max_length")
    if isinstance(said_by_tokenizer, int) and 2 <= said_by_tokenizer < _LONGEST:
        places = min(places, said_by_tokenizer)
    return int(places)


def _image_size(config: Any, folder: Path) -> tuple[int, int]:  # noqa: ANN401
    """Rows and columns that the network was trained on."""
    processor = _json(folder / "preprocessor_config.json")
    cropped = processor.get("crop_size") if processor.get("do_center_crop") else None
    for size in (cropped, getattr(config, "image_size", None), processor.get("size")):
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) == 2:
            return int(size[0]), int(size[1])
        if isinstance(size, dict) and {"height", "width"} <= size.keys():
            return int(size["height"]), int(size["width"])
        if isinstance(size, dict) and "shortest_edge" in size:
            return int(size["shortest_edge"]), int(size["shortest_edge"])
    return IMAGE


def _json(path: Path) -> dict[str, Any]:
    """A file that the folder may lack."""
    try:
        found = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ExportError(f"{path} is no JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _examples(inputs: Sequence[_Input], rows: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(_SEED)
    found = {}
    for each in inputs:
        shape = (rows, *each.shape)
        if each.high is None:
            found[each.name] = torch.randn(shape, generator=generator)
        else:
            found[each.name] = torch.randint(each.high + 1, shape, generator=generator)
    if _MASK in found:
        mask = torch.ones_like(found[_MASK])
        mask[-1, mask.size(1) * 3 // 4 :] = 0  # a shorter text, padded
        found[_MASK] = mask
    return found


def _program(
    network: nn.Module,
    inputs: Sequence[_Input],
    example: dict[str, Tensor],
    *,
    is_fixed: bool = False,
) -> ExportedProgram:
    def free(each: _Input) -> dict[int, Any]:
        sizes: dict[int, Any] = {} if is_fixed else {0: Dim.AUTO}
        if each.longest is not None:
            sizes[1] = Dim.AUTO(min=2, max=each.longest)
        return sizes

    try:
        return torch.export.export(
            network,
            tuple(example.values()),
            dynamic_shapes={each.name: free(each) for each in inputs},
        )
    except Exception as error:  # a network's Python throws without a common type
        raise ExportError(
            f"torch.export does not take {type(network.model).__name__}: {said(error)}"
        ) from error


def _declared(inputs: Sequence[_Input], program: ExportedProgram) -> list[Declared]:
    """Inputs with shapes as free as in the program."""
    found = []
    for each, shape in zip(inputs, shapes(program), strict=True):
        low, datatype = (None, "FP32") if each.high is None else (0, "INT64")
        found.append(Declared(each.name, datatype, shape, low, each.high))
    return found


def _notes(model: Any, task: str) -> list[str]:  # noqa: ANN401
    notes = []
    if task == _GENERATION:
        notes.append(
            "logits are those of the token behind the last one that attention_mask keeps; there "
            "is no cache, so each further token takes a request with the whole text"
        )
    return notes
