"""Small networks of Hugging Face with random weights, saved in folders."""

from __future__ import annotations

import importlib
import json
from typing import TYPE_CHECKING, Any

import torch

from lamina.modes import silent

if TYPE_CHECKING:
    from pathlib import Path

_TEXT = {
    "vocab_size": 60,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
_IMAGE = {
    "image_size": 32,
    "patch_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "Bert": _TEXT,
    "Roberta": _TEXT,
    "Llama": {**_TEXT, "num_key_value_heads": 1},
    "GPT2": {"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "ViT": _IMAGE,
    "T5": {"vocab_size": 60, "d_model": 16, "num_layers": 1, "num_heads": 2, "d_ff": 24, "d_kv": 8},
    "Wav2Vec2": {
        "vocab_size": 32,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_dim": (8, 8),
        "conv_stride": (5, 2),
        "conv_kernel": (10, 3),
    },
}


def save(folder: Path, family: str, kind: str, **options: object) -> Any:  # noqa: ANN401
    """`<family><kind>` with a small configuration, saved in `folder`."""
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**CONFIGS[family], **options)
    with silent():
        model = getattr(transformers, f"{family}{kind}")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5)  # so that answers differ clearly
        model.save_pretrained(folder)
    return model


def write(path: Path, content: object) -> None:
    """A file of JSON."""
    path.write_text(json.dumps(content))
