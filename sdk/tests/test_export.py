import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

import lamina
from lamina.metadata import InputField
from tests import graphs, networks


def load(path: Path) -> torch.jit.ScriptModule:
    loaded: torch.jit.ScriptModule = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return loaded


def outputs_of(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(model(x))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


@pytest.mark.parametrize("network", [networks.flat, networks.nested])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_file_gives_what_the_network_gives_bit_for_bit(
    network: Callable[[], lamina.MultiExit], rows: int, path: Path
) -> None:
    model = network()
    lamina.export(model, path, networks.images(2))
    x = networks.images(rows, seed=9)
    expected, actual = outputs_of(model, x), outputs_of(load(path), x)
    assert len(expected) == len(actual) == len(model.places)
    for left, right in zip(expected, actual, strict=True):
        assert torch.equal(left, right)
        assert rows == 1 or not torch.equal(left[0], left[1])


def test_stages_are_submodules_of_the_file(path: Path) -> None:
    model = networks.flat()
    lamina.export(model, path, networks.images(2))
    file, x = load(path), networks.images(2, seed=4)
    features = x
    with torch.no_grad():
        for index in range(3):
            features = getattr(file.stages, str(index))(features)
        assert torch.equal(getattr(file.heads, "2")(features), model(x)[-1])


def test_the_slicer_finds_each_head_behind_one_tensor(path: Path) -> None:
    lamina.export(networks.flat(), path, networks.images(2))
    trunk, (head,) = graphs.heads(path)
    assert trunk > head.nodes > 0
    assert len(head.takes) == 1


def test_the_slicer_finds_nested_heads_without_those_before_them(path: Path) -> None:
    lamina.export(networks.nested(), path, networks.images(2))
    _, (first, tip_side, tip, side) = graphs.heads(path)
    assert all(len(h.takes) == 1 for h in (first, tip_side, tip, side))
    # Each goes on from the features that the one before it hangs on.
    assert tip_side.takes != first.takes
    assert len({h.takes for h in (first, tip_side, tip, side)}) == 4


def test_nothing_in_the_archive_depends_on_the_name_of_the_file(path: Path) -> None:
    lamina.export(networks.flat(), path, networks.images(2))
    with zipfile.ZipFile(path) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"archive"}


def test_the_network_keeps_its_mode_and_its_weights(path: Path) -> None:
    model = networks.flat().train()
    model.stages[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    lamina.export(model, path, networks.images(2))
    assert model.training
    assert not model.stages[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_inference_mode_around_it_does_not_matter(path: Path) -> None:
    with torch.inference_mode():
        lamina.export(networks.flat(), path, networks.images(2))
    assert len(lamina.read_metadata(path).exits) == 2


def test_a_fixed_batch_is_written_as_such(path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            # The tracer turns the size into a constant.
            return x.reshape(int(x.shape[0]), -1)

    torch.manual_seed(0)
    model = lamina.MultiExit(
        [nn.Sequential(Fixed(), nn.Linear(12, 6)), nn.Linear(6, 3)], {0: nn.Linear(6, 3)}
    )
    example = torch.randn(2, 3, 4)
    with pytest.warns(TracerWarning):
        metadata = lamina.export(model, path, example, input_name="signal")
    assert metadata.input == InputField("signal", "FP32", (2, 3, 4))


def test_the_batch_is_free_where_the_network_is(path: Path) -> None:
    metadata = lamina.export(networks.flat(), path, networks.images(2))
    assert metadata.input == InputField("input", "FP32", (-1, 3, 32, 32))


def test_an_in_place_head_is_refused(path: Path) -> None:
    head = nn.Sequential(nn.ReLU(inplace=True), networks.head(8))
    model = lamina.MultiExit([nn.Conv2d(3, 8, 3), networks.head(8)], {0: head})
    with pytest.raises(lamina.ExportError, match="exit behind stage0 changes the features"):
        lamina.export(model, path, networks.images(2))
    assert not path.exists()


def test_an_in_place_stage_behind_an_exit_is_refused(path: Path) -> None:
    behind = lamina.Stage(nn.Sequential(nn.ReLU(inplace=True), networks.head(8)), "deep")
    model = lamina.MultiExit([nn.Conv2d(3, 8, 3), behind], {0: networks.head(8)})
    with pytest.raises(lamina.ExportError, match="deep changes its input in place"):
        lamina.export(model, path, networks.images(2))


def test_an_in_place_stage_is_refused_in_a_branch_too(path: Path) -> None:
    branch = lamina.MultiExit(
        [nn.Conv2d(8, 8, 1), nn.Sequential(nn.ReLU(inplace=True), networks.head(8))],
        {0: networks.head(8)},
    )
    model = lamina.MultiExit([nn.Conv2d(3, 8, 3), networks.head(8)], {0: branch})
    with pytest.raises(lamina.ExportError, match="stage1 changes its input in place"):
        lamina.export(model, path, networks.images(2))


class Noisy(nn.Module):
    """Gives another answer each time."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (Noisy(), "differs from the network's"),
        (Pair(), "stage1 gives a tuple"),
        (nn.Unflatten(1, (1, 5)), r"exit 1 gives shape \(2, 1, 5\)"),
        (nn.Threshold(1e9, float("nan")), "not finite"),
    ],
)
def test_what_cannot_be_exported_is_refused_and_the_old_file_stays(
    stage: nn.Module, message: str, path: Path
) -> None:
    path.write_text("old")
    model = lamina.MultiExit([networks.head(3), stage], {0: nn.Identity()})
    with pytest.raises(lamina.ExportError, match=message):
        lamina.export(model, path, networks.images(2))
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_arguments_that_do_not_fit_are_refused(path: Path) -> None:
    model, x = networks.flat(), networks.images(2)
    policy = lamina.Policy(lamina.Criterion.ENTROPY, (1.0,), ())
    with pytest.raises(lamina.ArgumentError, match="policy is for 1 exits, not 2"):
        lamina.export(model, path, x, policy=policy)
    with pytest.raises(lamina.ArgumentError, match="another network"):
        lamina.export(model, path, x, validation=networks.random_outputs(9, 2, classes=4))
    with pytest.raises(lamina.ArgumentError, match="needs a name"):
        lamina.export(model, path, x, input_name="")
    for example in (torch.tensor(1.0), x[:0], x.to(torch.complex64)):
        with pytest.raises(lamina.ArgumentError, match="example"):
            lamina.export(model, path, example)
