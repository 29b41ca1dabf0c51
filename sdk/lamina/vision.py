"""torchvision's networks with side classifiers as multi-exit networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lamina.errors import CompositionError
from lamina.model import Exit, MultiExit, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

_GOOGLENET_STAGES = (
    "conv1",
    "maxpool1",
    "conv2",
    "conv3",
    "maxpool2",
    "inception3a",
    "inception3b",
    "maxpool3",
    "inception4a",
    "inception4b",
    "inception4c",
    "inception4d",
    "inception4e",
    "maxpool4",
    "inception5a",
    "inception5b",
)


class _TransformInput(nn.Module):
    """Converts torchvision's image normalisation to that of the weights.

    The arithmetic is that of `GoogLeNet._transform_input`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Batch x 3 x height x width to the same shape."""
        red = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
        green = torch.unsqueeze(x[:, 1], 1) * (0.224 / 0.5) + (0.456 - 0.5) / 0.5
        blue = torch.unsqueeze(x[:, 2], 1) * (0.225 / 0.5) + (0.406 - 0.5) / 0.5
        return torch.cat((red, green, blue), 1)


def from_torchvision(network: nn.Module) -> MultiExit:
    """Turns torchvision's GoogLeNet with its side classifiers into a `MultiExit`.

    It has three exits: `aux1` behind inception4a, `aux2` behind inception4d, `final`.

    Its modules are not copied and its weights are shared, so training or
    loading into one changes the other. In evaluation mode the exits give the same as
    torchvision's heads, bit for bit.

    Args:
        network: `torchvision.models.googlenet(aux_logits=True, …)`. With ImageNet
            weights torchvision drops the side classifiers unless `aux_logits=True`
            is given.

    Raises:
        CompositionError: if it is another network or has no side classifiers.
    """
    from torchvision.models import GoogLeNet  # noqa: PLC0415, an optional dependency

    if type(network) is not GoogLeNet:
        raise CompositionError(
            f"{type(network).__name__} is not torchvision's GoogLeNet: compose other networks from "
            "their stages with MultiExit"
        )
    if not all(isinstance(getattr(network, name, None), nn.Module) for name in ("aux1", "aux2")):
        raise CompositionError(
            "this GoogLeNet has no side classifiers: make it with aux_logits=True"
        )
    modules = dict(network.named_children())
    stages = [Stage(modules[name], name) for name in _GOOGLENET_STAGES]
    if getattr(network, "transform_input", False):
        stages.insert(0, Stage(_TransformInput(), "transform-input"))
    end = nn.Sequential(modules["avgpool"], nn.Flatten(1), modules["dropout"], modules["fc"])
    return MultiExit(
        stages,
        {
            _behind(stages, "inception4a"): Exit(modules["aux1"], "aux1"),
            _behind(stages, "inception4d"): Exit(modules["aux2"], "aux2"),
            _behind(stages, "inception5b"): Exit(end),
        },
    )


def _behind(stages: Sequence[Stage], name: str) -> int:
    return [s.name for s in stages].index(name)
