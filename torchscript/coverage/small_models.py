"""Hand-written models: recurrent ones, several inputs and outputs, control flow."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from entry import Entry, Input, builder, entries, image, tokens

# How a model of the SDK is exported: traced, with `lamina.json` inside.
SDK = "sdk"


class Recurrent(nn.Module):
    """Token ids through a recurrent layer to classes."""

    def __init__(self, kind: str, bidirectional: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, 32)
        self.recurrent = getattr(nn, kind)(32, 64, 2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(128 if bidirectional else 64, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.recurrent(self.embedding(ids))[0][:, -1])


class Stacked(nn.Module):
    """Recurrent layers one after the other: each may be a block of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, 32)
        self.layers = nn.ModuleList([nn.LSTM(32, 32, batch_first=True) for _ in range(4)])
        self.head = nn.Linear(32, 10)

    def forward(self, ids: Tensor) -> Tensor:
        y = self.embedding(ids)
        for layer in self.layers:
            y = layer(y)[0]
        return self.head(y[:, -1])


class StateOut(nn.Module):
    """Gives the states of its recurrent layer too, which have the batch second."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.LSTM(16, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y, state = self.recurrent(x)
        return self.head(y), state


class Perceptron(nn.Module):
    """Six layers with in-place activations and dropout."""

    def __init__(self) -> None:
        super().__init__()
        layers = [[nn.Linear(64, 64), nn.ReLU(inplace=True), nn.Dropout(0.1)] for _ in range(6)]
        self.layers = nn.Sequential(*[layer for three in layers for layer in three])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Attention(nn.Module):
    """PyTorch's own transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.embedding = nn.Embedding(200, 32)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(ids)).mean(dim=1))


class Translation(nn.Module):
    """Encoder and decoder with two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, 32)
        self.transformer = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
        self.head = nn.Linear(32, 200)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.transformer(self.embedding(source), self.embedding(target)))


class UNet(nn.Module):
    """Skips from the way down to the way up: several tensors live in the middle."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [3, 16, 32, 64]
        pairs = list(itertools.pairwise(sizes))
        self.down = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in pairs])
        self.middle = nn.Conv2d(64, 64, 3, padding=1)
        self.up = nn.ModuleList([nn.Conv2d(2 * b, a, 3, padding=1) for a, b in pairs[::-1]])

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for layer in self.down:
            x = torch.relu(layer(x))
            skips.append(x)
            x = nn.functional.max_pool2d(x, 2)
        x = torch.relu(self.middle(x))
        for layer in self.up:
            skip = skips.pop()
            x = nn.functional.interpolate(x, size=skip.shape[2:], mode="nearest")
            x = layer(torch.cat([x, skip], 1))
        return x


class Autoencoder(nn.Module):
    """Down through strided and up through transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.GELU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GELU()
        )
        self.up = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 2, 2), nn.GELU(), nn.ConvTranspose2d(16, 3, 2, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


class Siamese(nn.Module):
    """Two images through the same layers, then compared."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 16, 3, 2), nn.ReLU(), nn.Flatten(1)
        )
        self.head = nn.Sequential(nn.Linear(16 * 7 * 7, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head((self.trunk(left) - self.trunk(right)).abs())


class TwoTowers(nn.Module):
    """An image and numbers, each through layers of its own, then joined."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.Conv2d(8, 8, 3, 2), nn.ReLU(), nn.Flatten(1)
        )
        self.numbers = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(8 * 7 * 7 + 32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, image: Tensor, numbers: Tensor) -> Tensor:
        return self.head(torch.cat([self.image(image), self.numbers(numbers)], 1))


class TupleOutput(nn.Module):
    """A tuple with a tuple inside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.third = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        y = torch.relu(self.first(x))
        z = torch.relu(self.second(y))
        return self.third(z), (y, z)


class DictOutput(nn.Module):
    """A dictionary of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.head(self.layers(x))
        return {"logits": logits, "probabilities": logits.softmax(1)}


class ListOutput(nn.Module):
    """A list of feature maps, as detectors' backbones give them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 if i == 0 else 8, 8, 3, 2) for i in range(4)])

    def forward(self, image: Tensor) -> list[Tensor]:
        found: list[Tensor] = []
        for layer in self.layers:
            image = torch.relu(layer(image))
            found.append(image)
        return found


class Branching(nn.Module):
    """Decides by the values which layers run; its loop's length is an input's size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        if bool(y.sum() > 100):
            y = torch.relu(self.second(y))
        for _ in range(x.size(1) // 8):
            y = torch.tanh(self.third(y))
        return self.second(y)


class Sizes(nn.Module):
    """Sizes of the input are used again behind every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3 if i == 0 else 8, 8, 3, 2) for i in range(3)])

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        for layer in self.layers:
            image = torch.relu(layer(image))
        return nn.functional.interpolate(image, size=[height, width])


class ByLength(nn.Module):
    """Takes another way with some lengths, and other types with few."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.fourth = (nn.Linear(16, 16) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        kind = y
        if x.size(1) % 7 == 5:
            kind = (y > 0).long()
        if x.size(1) > 20:
            y = torch.relu(self.second(y))
        return self.fourth(torch.relu(self.third(y)) + kind.float()).mean(1)


class Padded(nn.Module):
    """Fills lengths up to the next multiple of four."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        missing = (-x.size(1)) % 4
        y = nn.functional.pad(torch.relu(self.first(x)), (0, 0, 0, missing))
        y = torch.relu(self.second(y)).view(x.size(0), -1, 4, 16).sum(2)
        return self.third(y).mean(1)


class Aliases(nn.Module):
    """Writes through views of values that are read later."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        view = y[:, :8]
        z = self.second(y)
        view.add_(z[:, :8])
        return self.third(y) + z


class Optional(nn.Module):
    """Arguments that a request may leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 0.5) -> Tensor:
        y = torch.relu(self.first(x))
        if mask is not None:
            y = y * mask
        return self.third(torch.relu(self.second(y))) * scale


class Tied(nn.Module):
    """One weight at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(200, 32)
        self.layers = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU())

    def forward(self, ids: Tensor) -> Tensor:
        return nn.functional.linear(self.layers(self.embedding(ids)), self.embedding.weight)


class Stateful(nn.Module):
    """Counts its calls: the same request gives another answer each time."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return self.layer(x) * self.calls


class Random(nn.Module):
    """Adds noise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y + torch.randn_like(y))


def small(name: str, *arguments: object) -> nn.Module:
    """A model of this file."""
    return globals()[name](*arguments)


def _multi_exit() -> nn.Module:
    """A network of the SDK with two side exits."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "sdk"))
    import lamina

    def stage(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, 2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
        )

    def head(channels: int) -> nn.Sequential:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, 10))

    stages = [stage(3, 16), stage(16, 32), stage(32, 32), stage(32, 64)]
    return lamina.MultiExit(stages, {0: head(16), 2: head(32), 3: head(64)})


def _googlenet_exits() -> nn.Module:
    """The SDK's GoogLeNet with its two side classifiers."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "sdk"))
    import lamina
    import torchvision

    return lamina.from_torchvision(
        torchvision.models.googlenet(weights=None, aux_logits=True, init_weights=False)
    )


def all_entries() -> list[Entry]:
    """The rows of this file."""
    ids = [tokens(12, 200, "ids")]
    row = [Input("x", (-1, 16))]
    both = "tr sc"
    found = []
    for kind in ("LSTM", "GRU", "RNN"):
        found += entries("recurrent", kind.lower(), builder(small, "Recurrent", kind), ids, both)
    bidirectional = builder(small, "Recurrent", "LSTM", True)
    found += entries("recurrent", "lstm_bidirectional", bidirectional, ids, both)
    found += entries("recurrent", "lstm_stacked", builder(small, "Stacked"), ids, both)
    sequence = [Input("x", (-1, 12, 16))]
    found += entries("recurrent", "lstm_states", builder(small, "StateOut"), sequence, both)
    pair = [Input("left", (-1, 3, 32, 32)), Input("right", (-1, 3, 32, 32))]
    towers = [image(32), Input("numbers", (-1, 10))]
    words = [tokens(12, 200, "source"), tokens(8, 200, "target")]
    for name, model, inputs, modes in [
        ("perceptron", "Perceptron", [Input("x", (-1, 64))], both),
        ("attention", "Attention", ids, both),
        ("translation", "Translation", words, both),
        ("unet", "UNet", [image(64)], both),
        ("autoencoder", "Autoencoder", [image(32)], both),
        ("siamese", "Siamese", pair, both),
        ("two_towers", "TwoTowers", towers, both),
        ("tuple_output", "TupleOutput", row, both),
        ("dict_output", "DictOutput", row, both),
        ("list_output", "ListOutput", [image(64)], both),
        ("branching", "Branching", row, "sc"),
        ("sizes", "Sizes", [image(32)], both),
        ("aliases", "Aliases", row, both),
        ("optional", "Optional", row, "sc"),
        ("tied", "Tied", ids, both),
    ]:
        found += entries("small", name, builder(small, model), inputs, modes)
    for name, model in [("stateful", "Stateful"), ("random", "Random")]:
        found += entries("small", name, builder(small, model), row, "sc", telling=False)
    found += entries("SDK", "multi_exit", builder(_multi_exit), [image(32)], SDK)
    return found + entries("SDK", "googlenet_exits", builder(_googlenet_exits), [image(128)], SDK)
