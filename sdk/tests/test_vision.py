from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

import lamina
from tests import graphs, networks


def googlenet(*, transform_input: bool = False) -> torchvision.models.GoogLeNet:
    """Seeded, and telling: its BatchNorm saw the images that it is tried with."""
    torch.manual_seed(0)
    network = torchvision.models.googlenet(
        weights=None,
        num_classes=10,
        aux_logits=True,
        init_weights=False,
        transform_input=transform_input,
    )
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        network(networks.images(2, size=64))
    return network.eval()


@pytest.mark.parametrize("transform_input", [False, True])
def test_googlenet_gives_what_torchvision_gives(transform_input: bool) -> None:
    network = googlenet(transform_input=transform_input)
    model = lamina.from_torchvision(network).eval()
    assert model.exit_names == ("aux1", "aux2", "final")
    x = networks.images(2, seed=1, size=64)
    with torch.no_grad():
        aux1, aux2, final = model(x)
        assert torch.equal(final, network(x))
        # torchvision runs its side classifiers in training mode alone: that of the
        # network, while every layer stays in evaluation mode.
        network.training = True
        expected = network(x)
    assert torch.equal(final, expected.logits)
    assert torch.equal(aux2, expected.aux_logits2)
    assert torch.equal(aux1, expected.aux_logits1)
    assert not torch.equal(final[0], final[1])


def test_the_papers_network_has_its_22_units() -> None:
    model = lamina.from_torchvision(googlenet())
    # The paper counts pooling, flattening, dropout and the classifier one by one.
    end = model.heads[str(len(model.stages) - 1)]
    assert isinstance(end, nn.Sequential)
    assert len(model.stages) + len(end) + 2 == 22
    places = {p.name: model.stage_names[p.stage] for p in model.places}
    assert places == {"aux1": "inception4a", "aux2": "inception4d", "final": "inception5b"}


def test_weights_are_shared() -> None:
    network = googlenet()
    model = lamina.from_torchvision(network)
    shared = {p.data_ptr() for p in network.parameters()}
    assert {p.data_ptr() for p in model.parameters()} == shared


def test_googlenet_is_exported_with_both_heads(tmp_path: Path) -> None:
    model = lamina.from_torchvision(googlenet()).eval()
    path, x = tmp_path / "googlenet.pt", networks.images(2, seed=1, size=64)
    metadata = lamina.export(model, path, x, input_name="image")
    assert metadata.input.shape == (-1, 3, 64, 64)
    loaded = torch.jit.load(str(path))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        assert all(map(torch.equal, model(x), loaded(x)))
    trunk, heads = graphs.heads(path)
    assert [len(h.takes) for h in heads] == [1, 1]
    assert trunk > 5 * sum(h.nodes for h in heads)


def test_other_networks_are_refused() -> None:
    with pytest.raises(lamina.CompositionError, match="Linear is not torchvision's GoogLeNet"):
        lamina.from_torchvision(nn.Linear(1, 1))
    plain = torchvision.models.googlenet(weights=None, aux_logits=False, init_weights=False)
    with pytest.raises(lamina.CompositionError, match="aux_logits=True"):
        lamina.from_torchvision(plain)
