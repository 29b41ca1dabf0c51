from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import lamina
from tests import networks


@pytest.mark.parametrize("criterion", list(lamina.Criterion))
@pytest.mark.parametrize("network", [networks.flat, networks.nested])
def test_rows_leave_where_the_policy_says(
    network: Callable[[], lamina.MultiExit], criterion: lamina.Criterion
) -> None:
    model, x = network(), networks.images(40)
    outputs = lamina.collect(model, [(x, torch.zeros(40, dtype=torch.long))])
    policy = lamina.thresholds_for_exit_rates(
        outputs, 0.3, criterion=criterion, temperatures=[1.0] * len(model.places)
    )
    prediction = lamina.predict(model, x, policy)
    taken = policy.decide(outputs.logits)
    assert torch.equal(prediction.exits, taken)
    assert len(taken.unique()) == len(model.places)  # type: ignore[no-untyped-call]
    for row, exit_index in enumerate(taken.tolist()):
        assert prediction.labels[row] == outputs.logits[exit_index][row].argmax()


def test_stages_behind_the_last_row_do_not_run() -> None:
    model = networks.flat()
    seen: list[int] = []
    for index, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda *_, i=index: seen.append(i))
    everyone = lamina.Policy(lamina.Criterion.CONFIDENCE, (1.0, 1.0), (0.0,))
    assert lamina.predict(model, networks.images(3), everyone).exits.tolist() == [0, 0, 0]
    assert seen == [0]


def test_a_policy_for_another_network_is_refused() -> None:
    policy = lamina.Policy(lamina.Criterion.CONFIDENCE, (1.0, 1.0), (0.0,))
    with pytest.raises(lamina.ArgumentError, match="has 5 exits, the policy is for 2"):
        lamina.predict(networks.nested(), networks.images(1), policy)


def test_flops_add_up_to_those_of_the_whole() -> None:
    model, x = networks.nested().train(), networks.images(1)
    costs = lamina.flops_to_exits(model, x)
    assert model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    assert len(costs) == len(model.places)
    assert list(costs) == sorted(costs)
    assert costs[-1] == counter.get_total_flops()
    # The first stage, 3x3 from 3 to 8 channels on 16 x 16 places, and its head.
    assert costs[0] == 2 * (27 * 8 * 256 + 8 * 5)
