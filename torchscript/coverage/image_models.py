"""timm: image models of many families."""

from __future__ import annotations

from typing import TYPE_CHECKING

from entry import Entry, builder, entries, image

if TYPE_CHECKING:
    from torch import nn


def timm_model(name: str, **options: object) -> nn.Module:
    """A model of timm with random weights."""
    import timm

    return timm.create_model(name, pretrained=False, **options)


# Name, size of the image, ways to export it, whether the size is an option.
_MODELS = [
    ("vit_tiny_patch16_224", 96, "tr sc", True),
    ("deit_tiny_patch16_224", 96, "tr sc", True),
    ("beit_base_patch16_224", 96, "tr", True),
    ("mixer_s32_224", 224, "tr sc", False),
    ("resmlp_12_224", 224, "tr sc", False),
    ("gmlp_ti16_224", 224, "tr sc", False),
    ("pit_ti_224", 224, "tr", False),
    ("cait_xxs24_224", 96, "tr", True),
    ("xcit_nano_12_p16_224", 96, "tr", True),
    ("crossvit_9_240", 240, "tr", False),
    ("convit_tiny", 224, "tr", False),
    ("visformer_tiny", 224, "tr sc", False),
    ("twins_pcpvt_small", 96, "tr", True),
    ("pvt_v2_b0", 128, "tr sc", False),
    ("convnextv2_atto", 128, "tr sc", False),
    ("mobilevit_xxs", 128, "tr sc", False),
    ("mobilevitv2_050", 128, "tr", False),
    ("edgenext_xx_small", 128, "tr sc", False),
    ("efficientformer_l1", 224, "tr sc", False),
    ("levit_128s", 224, "tr sc", False),
    ("tiny_vit_5m_224", 224, "tr sc", False),
    ("coatnet_nano_rw_224", 224, "tr sc", False),
    ("poolformer_s12", 128, "tr sc", False),
    ("fastvit_t8", 128, "tr", False),
    ("efficientvit_b0", 128, "tr sc", False),
    ("repvgg_a0", 128, "tr", False),
    ("mobileone_s0", 128, "tr", False),
    ("res2net50_14w_8s", 96, "tr sc", False),
    ("resnest14d", 128, "tr sc", False),
    ("skresnet18", 128, "tr", False),
    ("seresnext26d_32x4d", 96, "tr", False),
    ("ghostnet_100", 128, "tr sc", False),
    ("hrnet_w18_small", 96, "tr", False),
    ("dla34", 96, "tr sc", False),
    ("dpn48b", 128, "tr", False),
    ("ese_vovnet19b_dw", 128, "tr", False),
    ("selecsls42b", 128, "tr", False),
    ("cspresnet50", 96, "tr sc", False),
    ("tinynet_e", 106, "tr", False),
    ("lcnet_050", 128, "tr", False),
    ("mobilenetv4_conv_small", 128, "tr sc", False),
    ("nf_regnet_b0", 128, "tr", False),
]


def all_entries() -> list[Entry]:
    """The rows of timm."""
    found = []
    for name, size, modes, is_option in _MODELS:
        options = {"img_size": size} if is_option else {}
        build = builder(timm_model, name, **options)
        found += entries("timm", f"timm_{name}", build, [image(size)], modes)
    return found
