import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lamina
from lamina.__main__ import DONE, main
from tests import folders

pytest.importorskip("transformers", reason="the extra lamina[hf]")

IDS, MASK, KINDS = "input_ids", "attention_mask", "token_type_ids"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "network"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "network.pt"


def load(path: Path) -> torch.jit.ScriptModule:
    loaded: torch.jit.ScriptModule = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return loaded


def texts(rows: int, length: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Ids and a mask, the last row being shorter."""
    ids = torch.randint(60, (rows, length), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    mask[-1, length - 2 :] = 0
    return ids, mask


@pytest.mark.parametrize(
    ("family", "kind", "task", "outputs"),
    [
        ("Bert", "ForSequenceClassification", "text-classification", ["logits"]),
        ("Bert", "ForTokenClassification", "token-classification", ["logits"]),
        ("Bert", "ForQuestionAnswering", "question-answering", ["start_logits", "end_logits"]),
        ("Bert", "Model", "feature-extraction", ["last_hidden_state", "pooler_output"]),
        ("Bert", "ForMaskedLM", "fill-mask", ["logits"]),
        ("Roberta", "ForSequenceClassification", "text-classification", ["logits"]),
    ],
)
def test_texts_get_what_transformers_answers(
    family: str, kind: str, task: str, outputs: list[str], folder: Path, path: Path
) -> None:
    model = folders.save(folder, family, kind)
    report = lamina.export_hf(folder, path, task, length=12)
    assert report.is_batch_free
    names = [i.name for i in report.inputs]
    assert names == [IDS, MASK, KINDS][: len(names)]
    assert [(i.low, i.high) for i in report.inputs[:2]] == [(0, 59), (0, 1)]
    assert all(check.equal for check in report.checks)
    assert {"batch 1", "batch 3", "request 1", "request 4"} <= {c.why for c in report.checks}
    file = load(path)
    for rows, length in ((1, 12), (3, 12), (2, 7)):
        ids, mask = texts(rows, length)
        kinds = torch.zeros_like(ids)
        answer = file(*(ids, mask, kinds)[: len(names)])
        with torch.no_grad():
            expected = model(**dict(zip(names, (ids, mask, kinds), strict=False)))
        assert list(answer) == outputs
        for name in outputs:
            torch.testing.assert_close(answer[name], expected[name], rtol=1e-5, atol=1e-5)


def test_what_is_declared_is_what_the_next_command_takes(folder: Path, path: Path) -> None:
    folders.save(folder, "Bert", "ForSequenceClassification")
    report = lamina.export_hf(folder, path, "text-classification")
    # Typically 128 tokens, had the network places for them.
    assert report.prepare_command().split(" --input ")[1:] == [
        "input_ids:INT64:-1xn0:2..32@32:0:59",
        "attention_mask:INT64:-1xn0:2..32@32:0:1",
        "token_type_ids:INT64:-1xn0:2..32@32:0:1 --out blocks",
    ]
    assert report.inputs[0].free[1].high == 32


def test_the_tokenizer_says_which_inputs_there_are_and_how_long(folder: Path, path: Path) -> None:
    folders.save(folder, "Bert", "ForSequenceClassification")
    tokenizer = {"model_input_names": [IDS, MASK], "model_max_length": 16}
    folders.write(folder / "tokenizer_config.json", tokenizer)
    report = lamina.export_hf(folder, path, "text-classification")
    assert [(i.name, i.example_shape[1], i.free[1].high) for i in report.inputs] == [
        (IDS, 16, 16),
        (MASK, 16, 16),
    ]
    with pytest.raises(lamina.ArgumentError, match="a length of 17"):
        lamina.export_hf(folder, path, "text-classification", length=17)


@pytest.mark.parametrize(("family", "kind"), [("Llama", "ForCausalLM"), ("GPT2", "LMHeadModel")])
def test_generation_gets_the_next_token_of_each_text(
    family: str, kind: str, folder: Path, path: Path
) -> None:
    model: Any = folders.save(folder, family, kind)
    report = lamina.export_hf(folder, path, "text-generation", length=10)
    assert report.outputs[0].shape == (-1, 60)
    assert any("no cache" in note for note in report.notes)
    ids, mask = texts(3, 10)
    with torch.no_grad():
        answer = load(path)(ids, mask)["logits"]
        for row in range(3):
            alone = model(ids[row : row + 1, : int(mask[row].sum())]).logits[:, -1]
            torch.testing.assert_close(answer[row : row + 1], alone, rtol=1e-4, atol=1e-4)
        # The same texts, padded in front.
        front = torch.cat([ids[2:, 8:], ids[2:, :8]], 1), torch.cat([mask[2:, 8:], mask[2:, :8]], 1)
        padded = load(path)(*front)["logits"]
    torch.testing.assert_close(padded, answer[2:], rtol=1e-4, atol=1e-4)


def test_images_get_what_transformers_answers(folder: Path, path: Path) -> None:
    model = folders.save(folder, "ViT", "ForImageClassification")
    report = lamina.export_hf(folder, path, "image-classification")
    assert [(i.name, i.shape) for i in report.inputs] == [("pixel_values", (-1, 3, 32, 32))]
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load(path)(x)["logits"], model(x).logits)


@pytest.mark.parametrize(
    ("processor", "size"),
    [
        ({"size": {"height": 8, "width": 9}}, (32, 32)),  # what the network was built for
        ({"do_center_crop": True, "crop_size": {"height": 48, "width": 32}}, (48, 32)),
    ],
)
def test_the_image_processor_says_how_large_images_are(
    processor: dict[str, Any], size: tuple[int, int], folder: Path
) -> None:
    from lamina import huggingface  # noqa: PLC0415

    model = folders.save(folder, "ViT", "ForImageClassification")
    folders.write(folder / "preprocessor_config.json", processor)
    assert huggingface._image_size(model.config, folder) == size


@pytest.mark.parametrize(
    ("family", "kind", "task", "message"),
    [
        ("Bert", "Model", "text-classification", "holds no weights for classifier.bias and 1 more"),
        ("T5", "Model", "feature-extraction", "torch.export does not take T5Model"),
        ("Wav2Vec2", "Model", "feature-extraction", "takes input_values, which is neither"),
    ],
)
def test_what_cannot_be_done_says_why(
    family: str, kind: str, task: str, message: str, folder: Path, path: Path
) -> None:
    folders.save(folder, family, kind)
    with pytest.raises(lamina.ExportError, match=message):
        lamina.export_hf(folder, path, task)
    assert not path.exists()


def test_folders_that_are_none_are_refused(folder: Path, path: Path) -> None:
    folder.mkdir()
    with pytest.raises(lamina.ExportError, match=r"holds no config\.json"):
        lamina.export_hf(folder, path, "fill-mask")
    folders.write(folder / "config.json", {"model_type": "bert"})
    with pytest.raises(lamina.ExportError, match="holds no safetensors"):
        lamina.export_hf(folder, path, "fill-mask")
    (folder / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(lamina.ExportError, match="transformers cannot load"):
        lamina.export_hf(folder, path, "fill-mask")
    folders.write(folder / "config.json", {"quantization_config": {}})
    with pytest.raises(lamina.ExportError, match="quantized weights"):
        lamina.export_hf(folder, path, "fill-mask")
    with pytest.raises(lamina.ArgumentError, match="no task 'poetry'"):
        lamina.export_hf(folder, path, "poetry")


def test_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders.save(folder, "ViT", "ForImageClassification")
    capsys.readouterr()
    command = ["export", "hf", str(folder), "--task", "image-classification"]
    assert main([*command, "--json"]) == DONE
    said = capsys.readouterr()
    assert said.err == ""
    report = json.loads(said.out)
    assert report["output"] == str(folder.with_suffix(".pt"))
    assert report["inputs"][0]["shape"] == [-1, 3, 32, 32]
    for wrong in (["--image", "32"], ["--image", "0x3"], ["--length", "x"], ["--task", "poetry"]):
        with pytest.raises(SystemExit) as end:
            main([*command, *wrong])
        assert end.value.code == 2
