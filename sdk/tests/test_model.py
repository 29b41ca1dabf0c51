import pytest
import torch
from torch import nn

import lamina
from tests import networks


def test_every_exit_gives_logits_and_the_last_is_the_end() -> None:
    model, x = networks.flat(), networks.images(3)
    first, last = model(x)
    assert first.shape == last.shape == (3, 5)
    assert model.exit_names == ("exit0", "final")
    features = model.stages[0](x)
    assert torch.equal(first, model.heads["0"](features))
    assert torch.equal(last, model.heads["2"](model.stages[2](model.stages[1](features))))


def test_a_last_stage_without_a_head_is_the_end_itself() -> None:
    model = networks.nested()
    x = networks.images(2)
    assert model.ends_in_stage
    assert torch.equal(model(x)[-1], nn.Sequential(*model.stages)(x))


def test_nested_exits_come_in_the_order_in_which_a_request_meets_them() -> None:
    model = networks.nested()
    assert [(p.name, p.stage, p.within) for p in model.places] == [
        ("exit0", 0, None),
        ("side-tip-exit0", 1, "side-tip"),
        ("side-tip", 1, "side"),
        ("side", 1, None),
        ("final", 3, None),
    ]
    assert len(model(networks.images(2))) == 5


def test_modules_are_taken_as_they_are() -> None:
    stage = networks.convolution(3, 8)
    model = lamina.MultiExit([lamina.Stage(stage, "a"), networks.head(8)], {0: networks.head(8)})
    assert model.stages[0] is stage
    assert model.stage_names == ("a", "stage1")


@pytest.mark.parametrize(
    ("stages", "exits", "message"),
    [
        ([], {}, "at least one stage"),
        ([nn.Identity()], {1: nn.Identity()}, r"behind the stages \[1\]"),
        ([nn.Identity()], {-1: nn.Identity()}, r"behind the stages \[-1\]"),
        ([nn.Identity()], {0: nn.Identity()}, "ordinary TorchScript"),
        ([nn.Identity(), nn.Identity()], {}, "ordinary TorchScript"),
        (
            [lamina.Stage(nn.Identity(), "A b"), nn.Identity()],
            {0: nn.Identity()},
            "lower-case",
        ),
        (
            [lamina.Stage(nn.Identity(), "x"), lamina.Stage(nn.Identity(), "x")],
            {0: nn.Identity()},
            "occur twice: x",
        ),
        (
            [nn.Identity(), nn.Identity()],
            {0: lamina.Exit(nn.Identity(), "final")},
            "occur twice: final",
        ),
        (
            [nn.Identity(), lamina.Stage(nn.Identity(), "tail", distributable=False)],
            {0: nn.Identity()},
            "tail is not distributable",
        ),
    ],
)
def test_what_makes_no_network_is_refused(
    stages: list[nn.Module | lamina.Stage],
    exits: dict[int, nn.Module | lamina.Exit],
    message: str,
) -> None:
    with pytest.raises(lamina.CompositionError, match=message):
        lamina.MultiExit(stages, exits)
