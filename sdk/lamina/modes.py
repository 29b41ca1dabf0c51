"""Context managers for evaluation, weights without gradients, and silence."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; restores each module's own mode.

    Inference mode is left too: its tensors do not count versions, which reveal changes in
    place.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def without_gradients(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Weights without gradients; restores their settings."""
    wanted = [(parameter, parameter.requires_grad) for parameter in parameters]
    for parameter, _ in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, wants in wanted:
            parameter.requires_grad_(wants)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides TorchScript's deprecation warnings, which concern this package only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        yield


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Hides warnings of other packages about their internals."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
