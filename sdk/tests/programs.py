"""Programs of torch.export for the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export import Dim

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.export import ExportedProgram

FREE = Dim.DYNAMIC


def exported(
    module: nn.Module,
    *places: object,
    free: dict[str, Any] | tuple[Any, ...] | None = None,
    **names: object,
) -> ExportedProgram:
    """`module` in evaluation mode; `free` as torch's dynamic_shapes."""
    return torch.export.export(module.eval(), places, names, dynamic_shapes=free)


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *places: Any) -> object:  # noqa: ANN401
        return self.function(*places)


def of_function(
    function: Callable[..., object], *places: object, rows: bool = True
) -> ExportedProgram:
    """A program of a function; the first size of each tensor is free where `rows`."""
    free = tuple({0: FREE} if isinstance(p, Tensor) and rows else None for p in places)
    return exported(Function(function), *places, free=(free,))


class Attention(nn.Module):
    """Heads are folded into the batch, where tracing turns the batch into a number."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = heads
        self.project = nn.Linear(width, 3 * width)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        each = (rows * self.heads, length, width // self.heads)
        q, k, v = (
            t.view(rows, length, self.heads, -1).transpose(1, 2).reshape(each)
            for t in self.project(x).chunk(3, dim=2)
        )
        mixed = torch.softmax(q @ k.transpose(1, 2), dim=2) @ v
        mixed = mixed.view(rows, self.heads, length, -1).transpose(1, 2).reshape(x.shape)
        answer: Tensor = self.head((x + mixed).mean(1))
        return answer


class Windows(nn.Module):
    """Windows of an image become rows of the batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        rows, channels, high, wide = x.shape
        x = x.view(rows, channels, high // 4, 4, wide // 4, 4).permute(0, 1, 2, 4, 3, 5)
        x = self.mix(x.reshape(rows * channels * (high // 4) * (wide // 4), 16))
        x = x.view(rows, channels, high // 4, wide // 4, 4, 4).permute(0, 1, 2, 4, 3, 5)
        return x.reshape(rows, channels, high, wide)


class Words(nn.Module):
    """Token ids and a mask, both sizes free."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        places = torch.arange(ids.size(1), dtype=torch.float32)
        hidden = self.embedding(ids) + places[:, None] * 0.1
        pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
        return {"logits": self.head(hidden), "pooled": pooled}


def words() -> ExportedProgram:
    """`Words`, with rows of different lengths."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(50, (2, 7), generator=generator)
    mask = torch.ones(2, 7)
    mask[1, 4:] = 0
    free = {"ids": {0: FREE, 1: FREE}, "mask": {0: FREE, 1: FREE}}
    return exported(Words(), ids, mask, free=free)
