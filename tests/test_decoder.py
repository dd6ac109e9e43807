"""The transposed-convolution decoder of locfedmix.md's corrections: any cut to any image, with less memory than the other form."""

from __future__ import annotations

import copy

import pytest
import torch
from test_equivalence import lower_of
from test_local_loss import aux_of
from test_named_models import fit
from torch import nn
from world import make_config

from sl_common.models.auxiliary import Decoder
from sl_common.network.footprint import footprint_of, kept_by
from sl_common.network.network import Network
from sl_server.simulation.simulation import Simulation

UPWARDS = Decoder(form="transposed")


@pytest.mark.parametrize("input", [(3, 32, 32), (1, 28, 28), (3, 64, 48), (2, 7, 9)])
@pytest.mark.parametrize("cut", [(64, 8, 8), (32, 14, 14), (128, 1, 1), (5, 7, 3), (4, 40, 40), (1, 6, 32)])
def test_any_map_becomes_the_image(cut: tuple[int, ...], input: tuple[int, ...]) -> None:
    module = UPWARDS.make(fit(cut, input))
    image = module(torch.randn(3, *cut)).detach()
    assert image.shape == (3, *input)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1
    assert [tuple(m.weight.shape[:2]) for m in module.modules() if isinstance(m, nn.ConvTranspose2d)] == [
        (cut[0], 32),
        (32, input[0]),
    ]
    assert UPWARDS.nbytes(fit(cut, input)) == sum(4 * p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("cut", "input"), [((64, 8, 8), (3, 32, 32)), ((32, 14, 14), (1, 28, 28)), ((128, 4, 4), (3, 64, 64))]
)
def test_it_keeps_less_in_memory(cut: tuple[int, ...], input: tuple[int, ...]) -> None:
    """Of one batch, for its backward pass."""
    z = torch.randn(8, *cut, requires_grad=True)
    kept = [kept_by(codec.make(fit(cut, input)), z)[1] for codec in (UPWARDS, Decoder())]
    assert kept[0] < 0.7 * kept[1], kept


def test_a_cut_that_is_no_map_has_linear_layers_as_ever() -> None:
    module = UPWARDS.make(fit((16,), (1, 8, 8)))
    assert module(torch.randn(2, 16)).shape == (2, 1, 8, 8)


def test_it_learns_to_give_the_image_back() -> None:
    torch.manual_seed(0)
    cut, input = (8, 4, 4), (1, 8, 8)
    module = UPWARDS.make(fit(cut, input))
    image = torch.rand(16, *input)
    z = image.view(16, 1, 4, 2, 4, 2).permute(0, 1, 3, 5, 2, 4).reshape(16, 4, 4, 4).repeat(1, 2, 1, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = (module(z) - image).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_a_run_trains_with_it() -> None:
    cnn = {"model__name": '"cnn"', "model__args": "{ channels = [4, 8], hidden = 16 }"}
    config = make_config("locfedmix", **cnn, protocol__learner__aux='{ form = "transposed" }')
    network = Network.build(config)
    before = copy.deepcopy(network.aux.state_dict())
    simulation = Simulation(config)
    simulation.run()
    assert simulation.coordinator.ended.finished
    after = [aux_of(simulation, client) for client in range(3)]
    assert all(not torch.equal(after[0][name], tensor) for name, tensor in before.items())
    assert all(torch.equal(after[0][name], after[1][name]) for name in before), "averaged after the round"
    assert lower_of(simulation, 0).keys() == lower_of(simulation, 1).keys()
    other = make_config("locfedmix", **cnn)
    assert footprint_of(config, network).activations < footprint_of(other, Network.build(other)).activations
