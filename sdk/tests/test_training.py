import math

import pytest
import torch
from torch.nn.functional import cross_entropy

import lamina
from tests import networks


def test_the_joint_loss_is_the_weighted_sum() -> None:
    outputs = networks.random_outputs(20, 3)
    losses = [cross_entropy(o, outputs.labels).item() for o in outputs.logits]
    plain = lamina.joint_loss(outputs.logits, outputs.labels)
    weighted = lamina.joint_loss(outputs.logits, outputs.labels, [0.3, 0.0, 2.0])
    assert plain.item() == pytest.approx(sum(losses), rel=1e-6)
    assert weighted.item() == pytest.approx(0.3 * losses[0] + 2.0 * losses[2], rel=1e-6)


def test_gradients_reach_only_what_is_in_front_of_a_weighted_exit() -> None:
    model = networks.flat()
    loss = lamina.joint_loss(model(networks.images(2)), torch.tensor([0, 1]), [1.0, 0.0])
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in model.stages[0].parameters())
    assert all(p.grad is None for p in model.stages[1].parameters())


@pytest.mark.parametrize("weights", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan]])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    outputs = networks.random_outputs(4, 2)
    with pytest.raises(lamina.ArgumentError, match="weights"):
        lamina.joint_loss(outputs.logits, outputs.labels, weights)


def test_training_learns_is_repeatable_and_reports_each_epoch() -> None:
    batches = [(networks.images(8, seed=s), torch.arange(8) % 5) for s in range(2)]
    seen: list[lamina.Epoch] = []
    first, second = (
        lamina.train(networks.flat(), batches, epochs=30, on_epoch=seen.append) for _ in range(2)
    )
    assert [e.loss for e in first] == [e.loss for e in second]
    assert first[-1].loss < first[0].loss / 2
    assert [(e.number, e.of) for e in seen[:30]] == [(n, 30) for n in range(1, 31)]


def test_a_spent_iterator_is_no_training_set() -> None:
    batches = iter([(networks.images(4), torch.zeros(4, dtype=torch.long))])
    with pytest.raises(lamina.ArgumentError, match="DataLoader"):
        lamina.train(networks.flat(), batches, epochs=2)


def test_no_epochs_are_refused() -> None:
    with pytest.raises(lamina.ArgumentError, match="epochs"):
        lamina.train(networks.flat(), [], epochs=0)
