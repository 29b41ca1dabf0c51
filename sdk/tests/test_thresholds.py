import itertools

import pytest
import torch

import lamina
from lamina import Criterion, scan
from lamina.scan import GAP
from tests import networks

ONES = [1.0, 1.0, 1.0]


def measured(outputs: lamina.ExitOutputs, index: int, criterion: Criterion) -> list[float]:
    return [float(v) for v in criterion.measure(outputs.logits[index])]


def all_thresholds(values: list[float], criterion: Criterion) -> list[float | None]:
    """A threshold between any two neighbours, one for all and one for nobody."""
    ranked = sorted(values)
    middles = [(a + b) / 2 for a, b in itertools.pairwise(ranked) if b - a > GAP]
    return [None, *middles, criterion.lets_all_leave]


def walk(
    outputs: lamina.ExitOutputs, thresholds: list[float | None], criterion: Criterion
) -> tuple[float, float]:
    """Accuracy and mean number of exits passed, row by row and without tensors."""
    sure = [measured(outputs, i, criterion) for i in range(len(thresholds))]
    answers = [o.argmax(dim=1).tolist() for o in outputs.logits]
    right, cost = 0, 0
    labels = outputs.labels.tolist()
    for row, label in enumerate(labels):
        taken = len(thresholds)
        for index, threshold in enumerate(thresholds):
            if threshold is None:
                continue
            value = sure[index][row]
            if value >= threshold if criterion is Criterion.CONFIDENCE else value <= threshold:
                taken = index
                break
        right += answers[taken][row] == label
        cost += taken + 1
    return right / len(labels), cost / len(labels)


@pytest.mark.parametrize("criterion", list(Criterion))
@pytest.mark.parametrize("target", [0.5, 0.8, 0.9])
def test_no_pair_of_thresholds_is_cheaper(criterion: Criterion, target: float) -> None:
    outputs = networks.random_outputs(24, 3, seed=5)
    policy = lamina.thresholds_for_accuracy(outputs, target, criterion=criterion, temperatures=ONES)
    accuracy, cost = walk(outputs, list(policy.thresholds), criterion)
    candidates = [all_thresholds(measured(outputs, i, criterion), criterion) for i in (0, 1)]
    every = [walk(outputs, list(pair), criterion) for pair in itertools.product(*candidates)]
    allowed = [(c, -a) for a, c in every if a >= target]
    assert (cost, -accuracy) == min(allowed)


@pytest.mark.parametrize("criterion", list(Criterion))
def test_one_side_exit_is_scanned_to_the_end(criterion: Criterion) -> None:
    outputs = networks.random_outputs(200, 2, seed=2)
    policy = lamina.thresholds_for_accuracy(
        outputs, 0.75, criterion=criterion, temperatures=ONES[:2]
    )
    found = walk(outputs, list(policy.thresholds), criterion)
    candidates = all_thresholds(measured(outputs, 0, criterion), criterion)
    every = [walk(outputs, [t], criterion) for t in candidates]
    assert (found[1], -found[0]) == min((c, -a) for a, c in every if a >= 0.75)


def test_the_evaluation_agrees_with_a_walk_row_by_row() -> None:
    outputs = networks.random_outputs(100, 3)
    policy = lamina.thresholds_for_accuracy(outputs, 0.8, temperatures=ONES)
    evaluation = lamina.evaluate(outputs, policy)
    accuracy, _ = walk(outputs, list(policy.thresholds), policy.criterion)
    assert evaluation.accuracy == accuracy >= 0.8
    assert sum(e.exit_rate for e in evaluation.exits) == pytest.approx(1.0)
    by_exit = sum(e.exit_rate * (e.accuracy or 0.0) for e in evaluation.exits)
    assert by_exit == pytest.approx(accuracy)


def test_costs_decide_which_exit_is_worth_it() -> None:
    outputs = networks.random_outputs(100, 2)
    free = lamina.thresholds_for_accuracy(outputs, 0.0, costs=[0.0, 1.0])
    dear = lamina.thresholds_for_accuracy(outputs, 0.0, costs=[2.0, 1.0])
    assert lamina.evaluate(outputs, free).exits[0].exit_rate == 1.0
    assert dear.thresholds == (None,)


def test_many_exits_stay_within_the_combinations_and_reach_the_target() -> None:
    outputs = networks.random_outputs(100, 5)
    policy = lamina.thresholds_for_accuracy(outputs, 0.9, temperatures=[1.0] * 5)
    evaluation = lamina.evaluate(outputs, policy)
    assert evaluation.accuracy >= 0.9
    assert evaluation.exits[-1].exit_rate < 1.0


def test_a_target_out_of_reach_names_the_best() -> None:
    outputs = networks.random_outputs(50, 2)
    with pytest.raises(lamina.TargetError, match=r"of 1\.0000 on 50 rows, the best reach 0\.\d+"):
        lamina.thresholds_for_accuracy(outputs, 1.0)


@pytest.mark.parametrize("criterion", list(Criterion))
@pytest.mark.parametrize("rates", [0.0, 0.3, [0.5, 0.25], [1.0, 0.5], 1.0])
def test_exit_rates_are_the_smallest_that_are_enough(
    criterion: Criterion, rates: float | list[float]
) -> None:
    outputs = networks.random_outputs(40, 3)
    policy = lamina.thresholds_for_exit_rates(outputs, rates, criterion=criterion)
    wanted = rates if isinstance(rates, list) else [rates, rates]
    reach = 1.0
    for rate, share in zip(wanted, lamina.evaluate(outputs, policy).exits, strict=False):
        rows = round(reach * 40)
        assert round(share.exit_rate * 40) == -(-round(rate * rows * 100) // 100)
        reach -= share.exit_rate


def test_thresholds_lie_between_rows_and_never_between_twins() -> None:
    values = torch.tensor([0.9, 0.5, 0.5 + GAP / 10, 0.7], dtype=torch.double)
    found = scan.scan(values, Criterion.CONFIDENCE)
    assert found.thresholds[0] is None
    assert list(found.thresholds[1:]) == pytest.approx([0.8, 0.6, 0.0], abs=GAP)
    assert found.counts.tolist() == [0, 1, 2, 4]
    assert found.order.tolist() == [0, 3, 2, 1]


@pytest.mark.parametrize("criterion", list(Criterion))
def test_the_table_counts_what_leaves_and_what_is_right(criterion: Criterion) -> None:
    outputs = networks.random_outputs(50, 2)
    table = lamina.exit_table(outputs, 0, criterion, rows=5)
    assert [r.exit_rate for r in table] == [0.2, 0.4, 0.6, 0.8, 1.0]
    values, right = measured(outputs, 0, criterion), outputs.right(0).tolist()
    for row in table:
        sure = criterion.leaves(torch.tensor(values), row.threshold).tolist()
        assert sum(sure) == row.exit_rate * 50
        assert row.accuracy == sum(s and r for s, r in zip(sure, right, strict=True)) / sum(sure)
    assert table[0].accuracy > table[-1].accuracy
    assert "20.0%" in lamina.format_table(table)


def test_arguments_that_do_not_fit_are_refused() -> None:
    outputs = networks.random_outputs(10, 3)
    for call in (
        lambda: lamina.thresholds_for_accuracy(outputs, 1.5),
        lambda: lamina.thresholds_for_accuracy(outputs, 0.5, costs=[1.0]),
        lambda: lamina.thresholds_for_accuracy(outputs, 0.5, temperatures=[1.0]),
        lambda: lamina.thresholds_for_exit_rates(outputs, [0.5]),
        lambda: lamina.thresholds_for_exit_rates(outputs, 1.5),
        lambda: lamina.exit_table(outputs, 0, Criterion.ENTROPY, rows=0),
        lambda: lamina.Policy(Criterion.ENTROPY, (1.0, 1.0), (2.0,)),
        lambda: lamina.Policy(Criterion.ENTROPY, (1.0, 1.0), ()),
        lambda: lamina.evaluate(outputs, lamina.Policy(Criterion.ENTROPY, (1.0, 1.0), (0.5,))),
        lambda: lamina.ExitOutputs((), outputs.labels),
        lambda: lamina.collect(networks.flat(), []),
    ):
        with pytest.raises(lamina.ArgumentError):
            call()


def test_collecting_keeps_rows_in_order_and_the_mode() -> None:
    model = networks.flat().train()
    batches = [(networks.images(3, seed=s), torch.tensor([0, 1, 2])) for s in (0, 1)]
    outputs = lamina.collect(model, batches)
    assert model.training
    assert outputs.labels.tolist() == [0, 1, 2, 0, 1, 2]
    with torch.no_grad():
        assert torch.equal(outputs.logits[1][3:], model.eval()(batches[1][0])[1])
