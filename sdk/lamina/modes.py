"""Evaluation, weights without gradients and silence, each for a while."""

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
    """Evaluation mode without gradients; each module gets its own mode back.

    Inference mode is left too: its tensors count no versions, by which changes in
    place are noticed.
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
    """Weights that want no gradient; each wants afterwards what it wanted before."""
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
    """Without the announcements that TorchScript goes away, which are for us."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        yield


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what other packages say about their own insides."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
