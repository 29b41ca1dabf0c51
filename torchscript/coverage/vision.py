"""torchvision: classification, segmentation, detection, video, optical flow."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, nn

from entry import Entry, Input, builder, entries, image


def torchvision_model(path: str, **options: object) -> nn.Module:
    """`torchvision.models.<path>` with random weights."""
    import torchvision

    return attrgetter(path)(torchvision.models)(**options)


def _model(
    group: str, path: str, inputs: list[Input], modes: str, **options: object
) -> list[Entry]:
    name = path.rpartition(".")[2]
    return entries(group, name, builder(torchvision_model, path, **options), inputs, modes)


def _small_vit(group: str, modes: str) -> list[Entry]:
    build = builder(
        torchvision_model,
        "VisionTransformer",
        image_size=64,
        patch_size=16,
        num_layers=6,
        num_heads=4,
        hidden_dim=128,
        mlp_dim=256,
    )
    return entries(group, "vit_6_layers", build, [image(64)], modes)


def _classification() -> list[Entry]:
    group = "classification"
    sizes = [
        ("alexnet", 128, "tr sc"),
        ("vgg11_bn", 64, "tr"),
        ("resnet18", 128, "tr sc"),
        ("resnet50", 128, "tr sc"),
        ("resnext50_32x4d", 96, "tr"),
        ("densenet121", 96, "tr sc"),
        ("mobilenet_v2", 128, "tr sc"),
        ("mobilenet_v3_small", 128, "tr sc"),
        ("mobilenet_v3_large", 128, "tr sc"),
        ("efficientnet_b0", 128, "tr sc"),
        ("efficientnet_v2_s", 96, "tr sc"),
        ("regnet_x_400mf", 128, "tr"),
        ("regnet_y_400mf", 128, "tr sc"),
        ("shufflenet_v2_x1_0", 128, "tr sc"),
        ("squeezenet1_0", 128, "tr"),
        ("squeezenet1_1", 128, "tr sc"),
        ("mnasnet1_0", 128, "tr sc"),
        ("convnext_tiny", 96, "tr sc"),
        ("swin_t", 96, "tr sc"),
        ("swin_v2_t", 96, "tr sc"),
        ("maxvit_t", 224, "tr sc"),
    ]
    found = [e for name, size, modes in sizes for e in _model(group, name, [image(size)], modes)]
    found += _model(group, "googlenet", [image(128)], "tr sc", aux_logits=True, init_weights=False)
    found += _model(group, "inception_v3", [image(128)], "tr sc", init_weights=False)
    return found + _small_vit(group, "tr sc")


def _segmentation() -> list[Entry]:
    plain = {"weights": None, "weights_backbone": None}
    sizes = [
        ("segmentation.lraspp_mobilenet_v3_large", 128, "tr sc"),
        ("segmentation.deeplabv3_mobilenet_v3_large", 96, "tr sc"),
        ("segmentation.deeplabv3_resnet50", 64, "tr sc"),
        ("segmentation.fcn_resnet50", 64, "tr sc"),
    ]
    return [
        e
        for path, size, modes in sizes
        for e in _model("segmentation", path, [image(size)], modes, **plain)
    ]


def detector(path: str) -> nn.Module:
    """A detection network that takes one image and gives its boxes."""

    class OneImage(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = torchvision_model(path, weights=None, weights_backbone=None)

        def forward(self, image: Tensor) -> Tensor:
            # Twice: BatchNorm cannot be calibrated on a single value.
            found = self.model([image, image])
            if torch.jit.is_scripting():
                return found[1][0]["boxes"]
            return found[0]["boxes"]

    return OneImage()


def _detection() -> list[Entry]:
    # They use operators of torchvision, and find another number of boxes each time.
    inputs = [Input("image", (3, 160, 160))]
    paths = [
        "detection.ssdlite320_mobilenet_v3_large",
        "detection.fasterrcnn_mobilenet_v3_large_320_fpn",
    ]
    return [
        e
        for path in paths
        for e in entries(
            "detection",
            path.rpartition(".")[2],
            builder(detector, path),
            inputs,
            "sc",
            telling=False,
        )
    ]


def _video() -> list[Entry]:
    def clip(frames: int, size: int) -> list[Input]:
        return [Input("clip", (-1, 3, frames, size, size))]

    found = _model("video", "video.r3d_18", clip(8, 64), "tr sc")
    found += _model("video", "video.mc3_18", clip(8, 64), "tr")
    found += _model("video", "video.r2plus1d_18", clip(8, 64), "tr sc")
    found += _model("video", "video.s3d", clip(16, 224), "tr sc")
    found += _model("video", "video.swin3d_t", clip(4, 64), "tr")
    pair = [Input("first", (-1, 3, 128, 128)), Input("second", (-1, 3, 128, 128))]
    return found + _model("optical flow", "optical_flow.raft_small", pair, "tr sc")


def all_entries() -> list[Entry]:
    """The rows of torchvision."""
    return _classification() + _segmentation() + _detection() + _video()
