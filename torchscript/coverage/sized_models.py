"""Rows whose requests have more free sizes than the batch: images, texts, sounds, sequences."""

from __future__ import annotations

from dataclasses import replace

import image_models
import language_models
import small_models
import vision
from entry import PROGRAM, SCRIPTED, Entry, Input, builder, entries, free

GROUP = "free sizes"

# Image networks that take any sides, by the module's Python; the least side, which is the step
# as well where the network halves it and adds what came before.
_IMAGES = {
    "alexnet": 64,
    "resnet18": 32,
    "resnet50": 32,
    "densenet121": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "mobilenet_v3_large": 32,
    "efficientnet_b0": 32,
    "regnet_y_400mf": 32,
    "shufflenet_v2_x1_0": 32,
    "squeezenet1_1": 32,
    "mnasnet1_0": 32,
    "convnext_tiny": 32,
    "swin_t": 32,
    "lraspp_mobilenet_v3_large": 32,
    "fcn_resnet50": 32,
    "deeplabv3_mobilenet_v3_large": 64,
    "timm_pvt_v2_b0": 32,
    "timm_convnextv2_atto": 32,
    "timm_edgenext_xx_small": 64,
    "timm_poolformer_s12": 32,
    "timm_efficientvit_b0": 32,
    "timm_res2net50_14w_8s": 32,
    "timm_resnest14d": 32,
    "timm_ghostnet_100": 32,
    "timm_dla34": 32,
    "timm_cspresnet50": 32,
    "timm_mobilenetv4_conv_small": 32,
    "timm_mobilevit_xxs": 64,
}
# Of these there is a row of the program as well.
_AS_PROGRAMS = (
    "alexnet",
    "resnet18",
    "resnet50",
    "densenet121",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "efficientnet_b0",
    "regnet_y_400mf",
    "squeezenet1_1",
    "mnasnet1_0",
    "convnext_tiny",
    "timm_pvt_v2_b0",
    "timm_poolformer_s12",
    "timm_resnest14d",
    "timm_ghostnet_100",
    "timm_dla34",
    "timm_convnextv2_atto",
    "timm_cspresnet50",
    "timm_mobilenetv4_conv_small",
    "shufflenet_v2_x1_0",
)
_LONGEST = 40
"""Tokens; the networks of texts have 64 places."""


def _images() -> list[Entry]:
    known = {e.model: e for e in [*vision.all_entries(), *image_models.all_entries()]}
    found = []
    for name, least in _IMAGES.items():
        sides = tuple(free(f"{side}:{least}..160/32@96") for side in ("h", "w"))
        if least % 32:
            raise ValueError(f"{name}: {least} is no multiple of 32")
        inputs = (Input("image", (-1, 3, *sides)),)
        modes = [SCRIPTED, PROGRAM] if name in _AS_PROGRAMS else [SCRIPTED]
        found += [
            replace(known[name], group=GROUP, model=f"{name}_sized", mode=mode, inputs=inputs)
            for mode in modes
        ]
    return found


def _texts() -> list[Entry]:
    """Programs, since the Python of transformers is traced with one length alone."""
    found = []
    for entry in language_models.all_entries():
        if any(value.name not in ("input_ids", "attention_mask") for value in entry.inputs):
            continue
        seq = free(f"seq:2..{_LONGEST}@16")
        inputs = tuple(replace(value, shape=(-1, seq)) for value in entry.inputs)
        name = f"{entry.model}_sized"
        found.append(replace(entry, group=GROUP, model=name, mode=PROGRAM, inputs=inputs))
    return found


def _sequences() -> list[Entry]:
    seq, sides = free("seq:1..40@12"), (free("h:16..96/16@64"), free("w:16..96/16@48"))
    ids = [Input("ids", (-1, seq), "INT64", (0, 199))]
    picture = [Input("image", (-1, 3, *sides))]
    pair = [Input("left", (-1, 3, *sides)), Input("right", (-1, 3, *sides))]
    target = free("length:1..20@8")
    words = [ids[0], Input("target", (-1, target), "INT64", (0, 199))]
    second = replace(ids[0], name="source")
    rows = [
        *[(kind.lower(), "Recurrent", (kind,), ids) for kind in ("LSTM", "GRU", "RNN")],
        ("lstm_bidirectional", "Recurrent", ("LSTM", True), ids),
        ("lstm_stacked", "Stacked", (), ids),
        ("lstm_states", "StateOut", (), [Input("x", (-1, seq, 16))]),
        ("attention", "Attention", (), ids),
        ("translation", "Translation", (), [second, words[1]]),
        ("unet", "UNet", (), picture),
        ("autoencoder", "Autoencoder", (), picture),
        ("siamese", "Siamese", (), pair),
        ("list_output", "ListOutput", (), picture),
        ("sizes", "Sizes", (), picture),
        ("tied", "Tied", (), ids),
        ("by_length", "ByLength", (), [Input("x", (-1, seq, 16))]),
        ("padded", "Padded", (), [Input("x", (-1, seq, 16))]),
    ]
    return [
        entry
        for name, model, arguments, inputs in rows
        for entry in entries(
            GROUP, f"{name}_sized", builder(small_models.small, model, *arguments), inputs, SCRIPTED
        )
    ]


def all_entries() -> list[Entry]:
    """The rows of this file."""
    return _images() + _texts() + _sequences()
