"""Small networks and rows for the tests."""

import torch
from torch import Tensor, nn

import lamina


def convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def head(channels: int, classes: int = 5) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, classes))


def flat() -> lamina.MultiExit:
    """Three stages, an exit behind the first and the last."""
    torch.manual_seed(0)
    return lamina.MultiExit(
        [convolution(3, 8), convolution(8, 12), convolution(12, 16)], {0: head(8), 2: head(16)}
    ).eval()


def nested() -> lamina.MultiExit:
    """A side branch behind stage 1 has an exit of its own, and one more within."""
    torch.manual_seed(1)
    inner = lamina.MultiExit([nn.Conv2d(8, 8, 1), convolution(8, 8)], {0: head(8), 1: head(8)})
    branch = lamina.MultiExit(
        [convolution(12, 8), nn.Conv2d(8, 6, 1)],
        {0: lamina.Exit(inner, "tip"), 1: lamina.Exit(head(6))},
    )
    return lamina.MultiExit(
        [convolution(3, 8), convolution(8, 12), convolution(12, 16), head(16)],
        {0: head(8), 1: lamina.Exit(branch, "side")},
    ).eval()


def images(rows: int, seed: int = 0, size: int = 32) -> Tensor:
    return torch.randn(rows, 3, size, size, generator=torch.Generator().manual_seed(seed))


def random_outputs(rows: int, exits: int, classes: int = 4, seed: int = 0) -> lamina.ExitOutputs:
    """Logits that know more of the label with each exit."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=draw)
    truth = nn.functional.one_hot(labels, classes)
    logits = tuple(
        torch.randn(rows, classes, generator=draw) + truth * (1.0 + index) for index in range(exits)
    )
    return lamina.ExitOutputs(logits, labels)
