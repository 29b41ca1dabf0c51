import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import lamina
from lamina.program.source import source
from tests import networks, programs
from tests.programs import FREE, exported, of_function


def load(path: Path) -> torch.jit.ScriptModule:
    loaded: torch.jit.ScriptModule = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    return loaded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.pt"


def whys(report: lamina.ProgramReport) -> list[str]:
    return [check.why for check in report.checks]


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (programs.Attention(), (2, 6, 16)),
        (programs.Windows(), (2, 3, 8, 12)),
        (nn.Sequential(nn.ChannelShuffle(2), nn.Flatten(), nn.Linear(64, 3)), (2, 4, 4, 4)),
    ],
)
def test_a_batch_that_tracing_would_fix_stays_free(
    module: nn.Module, shape: tuple[int, ...], path: Path
) -> None:
    program = exported(module, torch.randn(shape), free=({0: FREE},))
    report = lamina.export_program(program, path)
    assert report.is_batch_free
    assert all(p.requires_grad for p in program.parameters())
    file = load(path)
    # As in what serves: PyTorch multiplies another way where a weight wants a gradient.
    module.requires_grad_(False)
    for batch in (1, 2, 3, 8):
        x = torch.randn(batch, *shape[1:])
        assert torch.equal(file(x), module(x))


def test_each_free_size_is_tried_at_two_others(path: Path) -> None:
    report = lamina.export_program(programs.words(), path)
    assert [i.shape for i in report.inputs] == [(-1, -1), (-1, -1)]
    assert [(o.datatype, o.shape) for o in report.outputs] == [
        ("FP32", (-1, -1, 50)),
        ("FP32", (-1, 8)),
    ]
    assert sorted(whys(report)) == [
        *("batch 1", "batch 3", "other values", "size ids[1] 6", "size ids[1] 8", "the example"),
    ]
    assert all(check.equal for check in report.checks)
    answer = load(path)(torch.full((5, 11), 7), torch.ones(5, 11))
    assert {k: tuple(v.shape) for k, v in answer.items()} == {
        "logits": (5, 11, 50),
        "pooled": (5, 8),
    }


def test_requests_stay_in_the_vocabulary_of_the_example(path: Path) -> None:
    # 49 is the last of them; anything drawn beyond would fail.
    report = lamina.export_program(programs.words(), path)
    ids = report.inputs[0]
    assert ids.low is not None
    assert ids.high is not None
    assert 0 <= ids.low <= ids.high <= 49
    assert report.prepare_command() == (
        f"lamina-node-agent prepare {path} --input ids:INT64:-1x7:{ids.low:g}:{ids.high:g} "
        "--input mask:FP32:-1x7 --out blocks"
    )


def test_tied_weights_are_in_the_file_once(path: Path) -> None:
    lamina.export_program(programs.words(), path)
    with zipfile.ZipFile(path) as archive:
        sizes = [e.file_size for e in archive.infolist() if "/data/" in e.filename]
    assert sizes.count(50 * 8 * 4) == 1


def test_bounds_of_the_export_are_kept_to_and_told(path: Path) -> None:
    program = exported(nn.Linear(4, 2), torch.randn(5, 4), free=({0: Dim("b", min=4, max=6)},))
    report = lamina.export_program(program, path)
    assert whys(report)[2:] == ["batch 4", "batch 6"]
    free = report.inputs[0].free[0]
    assert (free.place, free.low, free.high) == (0, 4, 6)


def test_a_fixed_batch_is_told(path: Path) -> None:
    report = lamina.export_program(exported(nn.Linear(4, 2), torch.randn(5, 4)), path)
    assert not report.is_batch_free
    assert report.inputs[0].shape == (5, 4)
    assert "Dim('batch')" in report.notes[0]


def test_a_network_that_gives_the_same_for_all_is_told(path: Path) -> None:
    report = lamina.export_program(of_function(lambda x: x * 0, torch.rand(2, 3)), path)
    assert any("equality says little" in note for note in report.notes)
    telling = lamina.export_program(of_function(lambda x: x * 2, torch.rand(2, 3)), path)
    assert not telling.notes


sym_max: Any = torch.sym_max


def scaled(x: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(x, x, x, scale=1)


def strided(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, b, c = torch.split(x, [1, 2, 1], dim=1)
    values, places = x.topk(2, dim=1)
    return a + c, values, b[:, places[0, 0] * 0]


OPERATORS: dict[str, Callable[[Tensor], Any]] = {
    "an index with gaps": lambda x: x[:, torch.tensor([2, 0])],
    "an infinite constant": lambda x: x.masked_fill(x < 0, -math.inf),
    "a number in a tensor's place": lambda x: torch.where(x > 0, 1.5, x) + 3,
    "a datatype": lambda x: x.to(torch.float64).to(torch.int32),
    "no items": lambda x: x.sum([], keepdim=True),
    "a text": lambda x: torch.div(x, 0.3, rounding_mode="floor"),
    "a whole number for a float": lambda x: nn.functional.leaky_relu(x, 2),
    "an Optional float": lambda x: nn.functional.interpolate(
        x[:, None], scale_factor=2, mode="linear"
    ),
    "two lists taken apart": strided,
    "a list that stays whole": lambda x: torch.cat(torch.split(x, 1, dim=1), dim=0),
    "a list of one": lambda x: torch.split(x, 4, dim=1)[0] * 2,
    "work in place": lambda x: x.clone().mul_(2).relu_(),
    "work on its input in place": lambda x: x.add_(1) * 2,
    "attention with a whole number as its scale": lambda x: scaled(x[:, None, None, :]),
    "no gradient inside": lambda x: x * torch.no_grad()(x.exp)(),
    "no automatic mixing inside": lambda x: x * torch.autocast("cpu", enabled=False)(x.exp)(),
    "a new tensor": lambda x: torch.full((x.size(0), 2), 0.5, dtype=torch.float16),
    "what is no number": lambda x: (x - x) / (x - x),
    "complex numbers inside": lambda x: torch.fft.rfft(x).mul(2j).abs(),
    "a memory format": lambda x: x[:, :, None, None].contiguous(memory_format=torch.channels_last),
    "a constant": lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0]),
    "arithmetic of sizes": lambda x: x.new_zeros(x.size(0) * 3 // 2 + 1, sym_max(x.size(0), 3)) + 1,
    "a mean over a free size": lambda x: x.sum(0) / x.size(0),
    "a root of a free size": lambda x: x * x.size(0) ** 0.5,
}


def all_operators(x: Tensor) -> tuple[object, ...]:
    return tuple(function(x.clone()) for function in OPERATORS.values())


@pytest.mark.parametrize("decomposed", [False, True])
def test_operators_and_their_operands(decomposed: bool, path: Path) -> None:
    program = of_function(all_operators, torch.randn(2, 4))
    if decomposed:
        program = program.run_decompositions()
    report = lamina.export_program(program, path)
    assert report.is_batch_free
    x = torch.randn(6, 4)
    answers = program.module()(x)
    for name, expected, actual in zip(OPERATORS, answers, load(path)(x), strict=True):
        same = torch.utils._pytree.tree_map(is_same, expected, actual)
        assert all(torch.utils._pytree.tree_leaves(same)), name


def is_same(left: Tensor, right: Tensor) -> bool:
    if left.dtype != right.dtype:
        return False
    return torch.equal(left, right) or bool(left.isnan().all() and right.isnan().all())


def test_a_bias_is_added_as_the_network_adds_it(path: Path) -> None:
    # TorchScript takes an addmm apart; the last bits of some of these rows then differ.
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(128, 64, generator=generator), torch.randn(64, generator=generator)
    program = of_function(lambda x: torch.addmm(bias, x, weight), torch.randn(32, 128))
    lamina.export_program(program, path)
    x = torch.randn(48, 128, generator=generator)
    assert torch.equal(load(path)(x), torch.addmm(bias, x, weight))


def test_a_size_that_the_network_fixes_is_not_free(path: Path) -> None:
    def fixed(x: Tensor) -> Tensor:
        return x * 2 if x.size(0) == 2 else x

    auto = ({0: Dim.AUTO},)
    program = exported(programs.Function(fixed), torch.rand(2, 3), free=(auto,))
    assert lamina.program.shapes(program) == [(2, 3)]
    assert not lamina.export_program(program, path).is_batch_free


def test_a_branch_on_values_stays_a_branch(path: Path) -> None:
    def branch(x: Tensor) -> Tensor:
        found: Tensor = torch.cond(
            x.sum() > 0, lambda x: (x * 2).relu(), lambda x: x - x.size(0), (x,)
        )
        return found

    lamina.export_program(of_function(branch, torch.rand(2, 4)), path)
    file = load(path)
    for x in (torch.rand(3, 4), -torch.rand(3, 4)):
        assert torch.equal(file(x), (x * 2).relu() if x.sum() > 0 else x - 3)


def test_a_number_from_values_is_checked_as_the_program_checks_it(path: Path) -> None:
    def take(x: Tensor, count: Tensor) -> Tensor:
        rows: Any = count.item()
        check: Any = torch._check
        check(rows >= 1)
        check(rows <= 4)
        taken: Tensor = x.narrow(0, 0, rows) * rows
        return taken

    lamina.export_program(of_function(take, torch.randn(4, 2), torch.tensor(3), rows=False), path)
    x, file = torch.randn(4, 2), load(path)
    assert torch.equal(file(x, torch.tensor(2)), x[:2] * 2)
    with pytest.raises(Exception, match="RuntimeError"):
        file(x, torch.tensor(0))


def test_what_nests_in_the_answer_nests_in_the_file(path: Path) -> None:
    def nest(x: Tensor) -> object:
        return {"a": x, "none": None}, [x + 1, (x + 2,)], None

    lamina.export_program(of_function(nest, torch.rand(2, 3)), path)
    x = torch.rand(4, 3)
    first, (second, (third,)), nothing = load(path)(x)
    assert nothing is None
    assert list(first) == ["a"]
    assert torch.equal(torch.stack([first["a"], second, third]), torch.stack([x, x + 1, x + 2]))


def test_different_things_under_names_become_a_flat_tuple(path: Path) -> None:
    program = of_function(lambda x: {"a": x, "b": (x + 1, x + 2)}, torch.rand(2, 3))
    lamina.export_program(program, path)
    assert len(load(path)(torch.rand(4, 3))) == 3


def test_arguments_that_are_fixed_are_told_and_named_ones_are_taken(path: Path) -> None:
    class Named(nn.Module):
        def forward(
            self, x: Tensor, times: int, *, shift: Tensor, mask: Tensor | None = None
        ) -> Tensor:
            return x * times + shift if mask is None else x

    program = exported(Named(), torch.rand(2, 3), 4, mask=None, shift=torch.rand(3))
    report = lamina.export_program(program, path)
    assert [i.name for i in report.inputs] == ["x", "shift"]
    assert {n.split(" is ")[0] for n in report.notes[:2]} == {"times = 4", "mask = None"}
    x, shift = torch.rand(2, 3), torch.rand(3)
    assert torch.equal(load(path)(x, shift), x * 4 + shift)


def test_a_free_whole_number_becomes_a_tensor(path: Path) -> None:
    program = exported(
        programs.Function(lambda x, n: x.repeat(n, 1)), torch.rand(2, 3), 3, free=((None, FREE),)
    )
    report = lamina.export_program(program, path)
    assert (report.inputs[1].datatype, report.inputs[1].shape) == ("INT64", ())
    assert any("a scalar INT64" in note for note in report.notes)
    x = torch.rand(2, 3)
    assert torch.equal(load(path)(x, torch.tensor(5)), x.repeat(5, 1))


def windows_twice(free: tuple[dict[int, Any]]) -> str:
    """A text in which sizes are needed behind a convolution in the middle."""
    network = nn.Sequential(programs.Windows(), nn.Conv2d(3, 3, 1), programs.Windows())
    return source(exported(network, torch.randn(2, 3, 8, 8), free=free)).code


def test_a_free_batch_needs_no_number_from_the_beginning() -> None:
    # It would have to travel over each cut behind it.
    assert ".size(" not in windows_twice(({0: FREE},))


def test_sizes_are_taken_from_what_is_near() -> None:
    text = windows_twice(({0: FREE, 2: 4 * Dim("high")},))
    behind = text.partition("aten.conv2d(")[2]
    assert "conv2d.size(0), 3, conv2d.size(2) // 4" in behind
    assert "input.size(" not in behind


def test_the_file_freezes_to_the_same(path: Path) -> None:
    lamina.export_program(exported(programs.Attention(), torch.randn(2, 6, 16)), path)
    file, x = load(path).eval(), torch.randn(2, 6, 16)
    frozen = torch.jit.freeze(file, optimize_numerics=False)
    with torch.no_grad():
        assert torch.equal(frozen(x), file(x))
    assert "GetAttr" not in str(frozen.graph)


def test_the_name_of_the_file_is_not_in_it(path: Path) -> None:
    lamina.export_program(exported(nn.Linear(3, 3), torch.rand(2, 3)), path)
    other = path.with_name("other.pt")
    lamina.export_program(exported(nn.Linear(3, 3), torch.rand(2, 3)), other)
    with zipfile.ZipFile(path) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"archive"}


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * 2


@torch.library.custom_op("lamina_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def looped(x: Tensor) -> Tensor:
    while_loop: Any = torch._higher_order_ops.while_loop
    found: tuple[Tensor] = while_loop(lambda x: x.sum() < 10, lambda x: (x * 2 + 1,), (x,))
    return found[0]


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (programs.Function(twice), r"lamina_tests\.twice.* is none of libtorch's"),
        (programs.Function(looped), "TorchScript has nothing for while_loop"),
        (programs.Function(lambda x: x + torch.rand_like(x)), "draws random numbers"),
        (Counts(), "^the network overwrites its own"),
    ],
)
def test_what_cannot_be_done_is_named_and_the_old_file_stays(
    module: nn.Module, message: str, path: Path
) -> None:
    path.write_text("old")
    program = exported(module, torch.rand(2, 3))
    for each in (program, program.run_decompositions()):
        with pytest.raises(lamina.ExportError, match=message):
            lamina.export_program(each, path)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_a_difference_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What a graph and its text disagree on, if they ever do.
    from lamina.program import literals  # noqa: PLC0415

    monkeypatch.setattr(literals, "_float", lambda value: repr(value * 2))
    with pytest.raises(lamina.ExportError, match="differs from the program's on the example"):
        lamina.export_program(of_function(lambda x: x * 0.5, torch.rand(2, 3)), path)


def test_declared_inputs_name_and_bound_the_requests(path: Path) -> None:
    program = programs.words()
    declared = [
        lamina.Declared("words", "INT64", (-1, 9), 0, 49),
        lamina.Declared("attention", "FP32", (-1, 9)),
    ]
    report = lamina.export_program(program, path, inputs=declared)
    assert [i.name for i in report.inputs] == ["words", "attention"]
    assert (report.inputs[0].low, report.inputs[0].high) == (0, 49)
    with pytest.raises(lamina.ArgumentError, match="takes 2 inputs"):
        lamina.export_program(program, path, inputs=declared[:1])
    wrong = lamina.Declared("attention", "FP32", (-1, 9, 1))
    with pytest.raises(lamina.ArgumentError, match="FP32 -1x-1 in the program, not FP32 -1x9x1"):
        lamina.export_program(program, path, inputs=[declared[0], wrong])


def test_a_program_without_its_example_is_tried_on_drawn_values(path: Path) -> None:
    program = exported(programs.Attention(), torch.randn(2, 6, 16), free=({0: FREE},))
    program._example_inputs = None
    report = lamina.export_program(program, path)
    assert whys(report) == ["the example", "other values", "batch 1", "batch 3"]


def test_a_multi_exit_network_is_a_program_as_well(path: Path) -> None:
    model = networks.flat()
    free = {"x": {0: FREE}}
    lamina.export_program(exported(model, networks.images(2), free=free), path)
    x = networks.images(3, seed=2)
    with torch.no_grad():
        assert all(map(torch.equal, load(path)(x), model(x)))
