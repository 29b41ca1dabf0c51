"""Networks with several exits, composed of stages."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from lamina.errors import CompositionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""Names of stages and exits: labels as Kubernetes has them."""

FINAL = "final"
"""Name of the exit at the network's end where none is given."""


@dataclass(frozen=True)
class Stage:
    """A piece of the trunk, with a name and a mark.

    Attributes:
        module: takes one tensor and returns one tensor, batch first.
        name: unique in the network; `stage<index>` by default.
        distributable: whether the stage may run on another host than the stage
            before it. False forbids cuts before and inside it.
    """

    module: nn.Module
    name: str | None = None
    distributable: bool = True


@dataclass(frozen=True)
class Exit:
    """A head that turns the features behind a stage into logits, with a name.

    Attributes:
        head: takes the stage's output and returns logits (batch x classes); a
            `MultiExit` if the side branch has exits of its own.
        name: unique in the network; by default `exit<stage index>`, or `final`
            behind the last stage.
    """

    head: nn.Module
    name: str | None = None


@dataclass(frozen=True)
class ExitPlace:
    """Position of one exit of a network.

    Attributes:
        name: of the exit, unique in the network.
        stage: index of the trunk's stage behind which its branch begins.
        within: name of the exit at the end of its side branch; None on the trunk.
    """

    name: str
    stage: int
    within: str | None = None


class MultiExit(nn.Module):
    """A chain of stages with exits.

    `forward` takes one tensor and returns the logits of all exits as a tuple, in
    the order of execution; the last one is the network's end.

    Exits nest: if a head is itself a `MultiExit`, the features leave the trunk
    once, and a request that is not confident at any of the branch's exits continues
    on the trunk. The branch's own end has the head's name, its other exits have
    that name as a prefix.

    The modules are not copied: weights are shared with other users of them.

    Attributes:
        stages: the trunk, in order.
        heads: by the index of their stage, as a string.
        stage_names: one per stage.
        distributable: the mark of each stage.
        places: one per exit, in the order of the outputs.

    Args:
        stages: at least one; plain modules get default names.
        exits: by the index of the stage behind which they are attached. Without one
            behind the last stage, that stage's output is the final logits.

    Raises:
        CompositionError: with what to change.
    """

    def __init__(
        self,
        stages: Sequence[nn.Module | Stage],
        exits: Mapping[int, nn.Module | Exit],
    ) -> None:
        super().__init__()
        trunk = [s if isinstance(s, Stage) else Stage(s) for s in stages]
        sides = {i: e if isinstance(e, Exit) else Exit(e) for i, e in sorted(exits.items())}
        _check_exits(len(trunk), sides)
        self.stage_names = tuple(s.name or f"stage{i}" for i, s in enumerate(trunk))
        self.distributable = tuple(s.distributable for s in trunk)
        self.places = tuple(_places(len(trunk), sides))
        _check_names("stage", self.stage_names)
        _check_names("exit", tuple(p.name for p in self.places))
        _check_marks(self.stage_names, self.distributable, sides)
        self.stages = nn.ModuleList(s.module for s in trunk)
        self.heads = nn.ModuleDict({str(i): e.head for i, e in sides.items()})

    @property
    def exit_names(self) -> tuple[str, ...]:
        """Names of the exits in the order of the outputs."""
        return tuple(place.name for place in self.places)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Runs every stage and every exit.

        Args:
            x: input of the first stage, batch first.

        Returns:
            Logits (batch x classes) of each exit.
        """
        outputs: list[Tensor] = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            outputs.extend(self.exits_behind(index, x))
        if self.ends_in_stage:
            outputs.append(x)
        return tuple(outputs)

    def exits_behind(self, stage: int, features: Tensor) -> tuple[Tensor, ...]:
        """Logits of the exits behind one stage.

        Args:
            stage: index of the stage.
            features: that stage's output.
        """
        if str(stage) not in self.heads:
            return ()
        logits = self.heads[str(stage)](features)
        return logits if isinstance(logits, tuple) else (logits,)

    @property
    def ends_in_stage(self) -> bool:
        """Whether the last stage itself returns the final logits."""
        return str(len(self.stages) - 1) not in self.heads


def _check_exits(stages: int, exits: Mapping[int, Exit]) -> None:
    if stages == 0:
        raise CompositionError("a network needs at least one stage")
    strays = [i for i in exits if not 0 <= i < stages]
    if strays:
        raise CompositionError(
            f"exits hang behind the stages {strays}, but the stages are 0..={stages - 1}"
        )
    sides = [e for i, e in exits.items() if i < stages - 1 or isinstance(e.head, MultiExit)]
    if not sides:
        raise CompositionError(
            "there is no side exit: export such a network as an ordinary TorchScript file, "
            "Lamina needs nothing else"
        )


def _places(stages: int, exits: Mapping[int, Exit]) -> Iterator[ExitPlace]:
    for index, side in exits.items():
        name = side.name or (FINAL if index == stages - 1 else f"exit{index}")
        if isinstance(side.head, MultiExit):
            yield from _places_of_branch(name, index, side.head)
        yield ExitPlace(name, index)
    if stages - 1 not in exits:
        yield ExitPlace(FINAL, stages - 1)


def _places_of_branch(name: str, stage: int, branch: MultiExit) -> Iterator[ExitPlace]:
    """The exits of a side branch, except its end `name`."""
    end = branch.places[-1].name
    for place in branch.places[:-1]:
        within = name if place.within in (None, end) else f"{name}-{place.within}"
        yield ExitPlace(f"{name}-{place.name}", stage, within)


def _check_names(kind: str, names: Sequence[str]) -> None:
    for name in names:
        if not NAME.fullmatch(name):
            raise CompositionError(
                f"{kind} name {name!r}: use at most 63 lower-case letters, digits and inner hyphens"
            )
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        raise CompositionError(f"{kind} names must differ, these occur twice: {', '.join(doubles)}")


def _check_marks(
    names: Sequence[str], distributable: Sequence[bool], exits: Mapping[int, Exit]
) -> None:
    for index in exits:
        behind = index + 1
        if behind < len(names) and not distributable[behind]:
            raise CompositionError(
                f"{names[behind]} is not distributable, but an exit behind {names[index]} makes "
                "a cut in front of it: mark it distributable or move the exit"
            )
