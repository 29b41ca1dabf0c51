import pytest
import torch
from torch.nn.functional import cross_entropy

import lamina
from lamina.calibration import TEMPERATURES


def drawn(rows: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax is the distribution of the labels."""
    draw = torch.Generator().manual_seed(3)
    logits = 2.0 * torch.randn(rows, 6, generator=draw)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=draw).flatten()
    return logits, labels


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_the_factor_by_which_logits_are_off_is_found(factor: float) -> None:
    logits, labels = drawn()
    found = lamina.fit_temperature(logits * factor, labels)
    assert found == pytest.approx(factor, rel=0.05)
    before = lamina.expected_calibration_error(logits * factor, labels)
    after = lamina.expected_calibration_error(logits * factor, labels, found)
    assert after < 0.02
    assert after <= before + 1e-3


def test_the_temperature_is_the_best_of_a_fine_grid() -> None:
    logits, labels = drawn(500)

    def loss(temperature: float) -> float:
        return cross_entropy(logits.double() / temperature, labels).item()

    found = lamina.fit_temperature(logits, labels)
    assert loss(found) <= min(loss(0.5 + 0.001 * step) for step in range(1500)) + 1e-12


def test_a_set_that_cannot_tell_gives_1_and_a_useless_exit_the_upper_border() -> None:
    labels = torch.arange(30) % 3
    logits = torch.nn.functional.one_hot(labels, 3).float()
    assert lamina.fit_temperature(logits, labels) == 1.0
    assert lamina.fit_temperature(-logits, labels) == pytest.approx(TEMPERATURES[1])


def test_the_calibration_error_is_that_of_a_count_by_hand() -> None:
    # Two rows at confidence 0.75, one of them right, and two at 0.6, both right.
    p = torch.tensor([[0.75, 0.25], [0.75, 0.25], [0.4, 0.6], [0.4, 0.6]])
    labels = torch.tensor([0, 1, 1, 1])
    error = lamina.expected_calibration_error(p.log(), labels, bins=10)
    assert error == pytest.approx((2 * 0.25 + 2 * 0.4) / 4)


def test_labels_that_do_not_fit_are_refused() -> None:
    logits = torch.zeros(3, 2)
    for labels in (torch.zeros(2).long(), torch.zeros(3), torch.tensor([0, 1, 2])):
        with pytest.raises(lamina.ArgumentError, match="labels"):
            lamina.fit_temperature(logits, labels)
    with pytest.raises(lamina.ArgumentError, match="bins"):
        lamina.expected_calibration_error(logits, torch.zeros(3).long(), bins=0)
