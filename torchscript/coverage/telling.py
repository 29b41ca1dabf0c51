"""Makes random weights telling: two inputs get clearly different answers.

With the weights of most constructors they hardly do. Residual branches are
scaled by 1e-6, heads start at zero, transformers at a deviation of 0.02, and
BatchNorm that never saw data lets activations die: a wrong chain of blocks would
give the right answer by accident.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

if TYPE_CHECKING:
    from collections.abc import Callable

_GAIN = math.sqrt(2)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)


def make_telling(model: nn.Module, draw: Callable[[int, int], list[Tensor]]) -> None:
    """Rescales weights and calibrates BatchNorm on what `draw(batch, seed)` gives.

    `model` is left in evaluation mode.
    """
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.is_floating_point() and parameter.numel() > 0:
                    _rescale(module, name, parameter)
        _calibrate(model.eval(), draw)


def _rescale(module: nn.Module, name: str, parameter: Tensor) -> None:
    deviation = float(parameter.std(correction=0))
    if name == "weight" and isinstance(module, (nn.Linear, *_CONVOLUTIONS)):
        fan_in = parameter[0].numel()
        if deviation == 0:
            parameter.normal_(0, _GAIN / math.sqrt(fan_in))
        elif deviation * math.sqrt(fan_in) < 1:
            parameter.mul_(_GAIN / (deviation * math.sqrt(fan_in)))
    elif deviation == 0 and bool((parameter == 0).all()):
        parameter.normal_(0, 0.2)  # biases, tokens, position tables
    elif deviation < 1e-4:
        parameter.uniform_(0.5, 1.5)  # norms' weights, scales of branches


def _calibrate(model: nn.Module, draw: Callable[[int, int], list[Tensor]]) -> None:
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not layers:
        return
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the average of all batches, not mostly the last
        layer.train()
    for seed in range(2):
        model(*draw(4, 1000 + seed))
    model.eval()
