import math

import pytest
import torch

import lamina
from lamina import Criterion

LOGITS = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [50.0, 0.0, -50.0]])


def by_hand(row: list[float], temperature: float) -> tuple[float, float]:
    """Confidence and normalised entropy."""
    weights = [math.exp(v / temperature) for v in row]
    p = [w / sum(weights) for w in weights]
    return max(p), -sum(v * math.log(v) for v in p if v > 0) / math.log(len(p))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_measures_are_those_of_the_definition(temperature: float) -> None:
    confidence = Criterion.CONFIDENCE.measure(LOGITS, temperature).tolist()
    entropy = Criterion.ENTROPY.measure(LOGITS, temperature).tolist()
    for row, c, e in zip(LOGITS.tolist(), confidence, entropy, strict=True):
        assert (c, e) == pytest.approx(by_hand(row, temperature), abs=1e-12)


def test_the_surest_and_the_most_doubtful_are_the_ends_of_the_range() -> None:
    assert Criterion.CONFIDENCE.measure(LOGITS)[1].item() == pytest.approx(1 / 3)
    assert Criterion.ENTROPY.measure(LOGITS)[1].item() == pytest.approx(1.0)
    for criterion in Criterion:
        assert criterion.measure(LOGITS)[2].item() == pytest.approx(criterion.surest)


@pytest.mark.parametrize("criterion", list(Criterion))
def test_a_threshold_itself_lets_leave_and_none_lets_nobody(criterion: Criterion) -> None:
    measured = criterion.measure(LOGITS)
    assert criterion.leaves(measured, measured[0].item()).tolist() == [True, False, True]
    assert criterion.leaves(measured, criterion.lets_all_leave).all()
    assert not criterion.leaves(measured, None).any()


def test_logits_and_temperatures_that_do_not_fit_are_refused() -> None:
    for logits in (torch.zeros(3), torch.zeros(3, 1)):
        with pytest.raises(lamina.ArgumentError, match="rows x classes"):
            Criterion.CONFIDENCE.measure(logits)
    for temperature in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(lamina.ArgumentError, match="temperature"):
            Criterion.ENTROPY.measure(LOGITS, temperature)
