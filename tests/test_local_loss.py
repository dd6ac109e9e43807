"""Learners with a loss of their own and mixup, by the invariants of their papers' specs (locfedmix.md g; baselines.md 5 and 6)."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from test_equivalence import assert_same_bits, batches, dumb_average, halves, loaders, lower_of, run, whole_model
from test_named_models import fit
from torch import Tensor, nn
from world import World, make_config

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, WireError
from sl_common.messages.facts import ClientLeft
from sl_common.messages.training import Done, Gradient, Ready, Smashed
from sl_common.models.auxiliary import Classifier, Decoder
from sl_common.network.network import Network
from sl_common.protocol import At, LocalLoss, Mixup
from sl_common.protocol.mix import Part
from sl_server.core.claims import check_ready
from sl_server.preflight.check import inspect
from sl_server.simulation.simulation import Simulation

SGD = {"lr": 0.05, "momentum": 0.9}


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), **SGD)


def aux_of(simulation: Simulation, client: int) -> dict[str, Tensor]:
    return simulation.seats[client].bank.get("aux").state()


def images(config: RunConfig, batch: Any) -> Tensor:
    """The [0, 1] image, from the normalised one."""
    data = loaders(config)[0].data
    return batch.x * data.std + data.mean


CNN = {"model__name": '"cnn"', "model__args": "{ channels = [4, 8], hidden = 16 }"}


# --- a plain loop does the same


@pytest.mark.parametrize("send_every", [1, 2, 3])
@pytest.mark.parametrize("upload", ["first", "last"])
@pytest.mark.parametrize("partial", [None, "skip", "send"])
def test_a_local_loss_is_plain_training_on_either_side(send_every: int, upload: str, partial: str | None) -> None:
    """baselines.md 5, 6: lower and auxiliary step on the client's own loss; the head on what is sent, client after client in turn.

    Clients learn from all five batches, whether the last group sends one or not.
    """
    skips = partial == "skip" or (partial is None and upload == "last")
    config = make_config(
        "cse_fsl",
        run__clients=2,
        client__wave="{ steps = 5 }",
        protocol__learner__send_every=send_every,
        protocol__learner__upload=f'"{upload}"',
        **({} if partial is None else {"protocol__learner__partial": f'"{partial}"'}),
    )
    simulation = run(config)
    lower, head = halves(whole_model(config), 1)
    network = Network.build(config)
    lowers, auxes = ([copy.deepcopy(module) for _ in range(2)] for module in (lower, network.aux))
    steps = [(sgd(lowers[c]), sgd(auxes[c])) for c in range(2)]
    head_step = sgd(head)
    for round in range(config.run.rounds):
        sent: list[list[tuple[Tensor, Tensor]]] = [[], []]
        for client, loader in enumerate(loaders(config)):
            for number, batch in enumerate(batches(config, loader, round)):
                z = lowers[client](batch.x)
                group = range(number - number % send_every, min(number - number % send_every + send_every, 5))
                if number == (group[0] if upload == "first" else group[-1]) and not (skips and len(group) < send_every):
                    sent[client].append((z.detach(), batch.y))
                for step in steps[client]:
                    step.zero_grad()
                F.cross_entropy(auxes[client](z), batch.y).backward()
                steps[client][1].step()
                steps[client][0].step()
        assert len(sent[0]) == (5 // send_every if skips else -(-5 // send_every))
        for group in zip(*sent, strict=True):
            for z, y in group:
                head_step.zero_grad()
                F.cross_entropy(head(z), y).backward()
                head_step.step()
        for parts in (lowers, auxes):
            mean = dumb_average([m.state_dict() for m in parts], [loader.samples for loader in loaders(config)])
            for m in parts:
                m.load_state_dict(mean)
    assert_same_bits(simulation.coordinator.bank.get("head").state(), head.state_dict())
    for client in range(2):
        assert_same_bits(lower_of(simulation, client), lowers[client].state_dict())
        assert_same_bits(aux_of(simulation, client), auxes[client].state_dict())


@pytest.mark.parametrize("mu", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("partners", [0, 1, 2])
def test_the_whole_of_it_is_one_plain_loss(mu: float, partners: int) -> None:
    """locfedmix.md b: Σ δᵢ(Lᵢ + L̃ᵢ) at the head, d(Lᵢ)/ds + μ·d(L̂ᵢ)/ds at the client, decoders by L̂ᵢ alone."""
    config = make_config(
        "locfedmix",
        **CNN,
        client__wave="{ steps = 2 }",
        protocol__learner__mu=mu,
        protocol__head__mix__partners=partners,
    )
    simulation = run(config)
    lower, head = halves(whole_model(config), 1)
    mix = config.protocol.head.mix
    lowers, auxes = ([copy.deepcopy(m) for _ in range(3)] for m in (lower, Network.build(config).aux))
    steps, aux_steps, head_step = [sgd(m) for m in lowers], [sgd(m) for m in auxes], sgd(head)
    for round in range(config.run.rounds):
        dealt = [list(batches(config, loader, round)) for loader in loaders(config)]
        for number in range(2):
            group = [own[number] for own in dealt]
            cut = [lowers[c](b.x) for c, b in enumerate(group)]
            s = [z.detach().requires_grad_() for z in cut]
            own = [F.cross_entropy(head(s[c]), b.y) for c, b in enumerate(group)]
            total = sum(own) / 3
            parts = [Part(client=c, z=s[c].detach(), y=b.y, weight=1 / 3) for c, b in enumerate(group)]
            at = At(seed=0, round=round, rounds=2, step=number, wave_size=3)
            for part in parts:
                drawn = mix.draw(part, [p for p in parts if p is not part], at)
                for other, lam in drawn:
                    share = float(lam[0])
                    logits = head(share * part.z + (1 - share) * other.z)
                    soft = share * F.one_hot(part.y, 10) + (1 - share) * F.one_hot(other.y, 10)
                    total = total + F.cross_entropy(logits, soft) / 3 / len(drawn)
            head_step.zero_grad()
            total.backward()
            head_step.step()
            for c, b in enumerate(group):
                z = cut[c].detach().requires_grad_()
                aux_steps[c].zero_grad()
                F.mse_loss(auxes[c](z), images(config, b)).backward()
                aux_steps[c].step()
                steps[c].zero_grad()
                cut[c].backward(3 * s[c].grad + mu * z.grad)
                steps[c].step()
        for modules in (lowers, auxes):
            mean = dumb_average([m.state_dict() for m in modules], [loader.samples for loader in loaders(config)])
            for m in modules:
                m.load_state_dict(mean)
    found = {**lower_of(simulation, 0), **simulation.coordinator.bank.get("head").state()}
    for name, tensor in {**lowers[0].state_dict(), **head.state_dict()}.items():
        torch.testing.assert_close(found[name], tensor, rtol=2e-4, atol=2e-6)
    for name, tensor in auxes[0].state_dict().items():
        torch.testing.assert_close(aux_of(simulation, 0)[name], tensor, rtol=2e-4, atol=2e-6)


# --- locfedmix.md g


def test_without_mixup_regulariser_and_averages_it_is_the_parallel_preset() -> None:
    """g1: n_s = 0, μ = 0, T_c = ∞."""
    off = {"protocol__learner__mu": 0, "protocol__head__mix__partners": 0, "protocol__merge__every": 99}
    ours, plain = run(make_config("locfedmix", **CNN, **off)), run(make_config("parallel", **CNN))
    assert_same_bits(ours.coordinator.bank.get("head").state(), plain.coordinator.bank.get("head").state())
    for client in range(3):
        assert_same_bits(lower_of(ours, client), lower_of(plain, client))


def test_without_mixup_and_regulariser_it_averages_a_lock_step_run() -> None:
    """g1: T_c = 1."""
    off = {"protocol__learner__mu": 0, "protocol__head__mix__partners": 0}
    ours = run(make_config("locfedmix", **CNN, **off))
    plain = run(make_config("parallel", **CNN, protocol__merge='{ kind = "average" }'))
    assert_same_bits(lower_of(ours, 1), lower_of(plain, 1))


def parts_of(sizes: tuple[int, ...] = (6, 6, 6), seed: int = 0) -> list[Part]:
    draw = torch.Generator().manual_seed(seed)
    return [
        Part(
            client=10 * c,
            z=torch.randn(n, 4, generator=draw, requires_grad=True),
            y=torch.randint(10, (n,), generator=draw),
            weight=n / sum(sizes),
        )
        for c, n in enumerate(sizes)
    ]


class Fixed(Mixup):
    """λ as told."""

    lam: float = 1.0

    def _lam(self, generator: Any, count: int) -> Any:  # noqa: ARG002
        return np.full(count, self.lam)


class PlainHead:
    """A head that counts its passes."""

    def __init__(self) -> None:
        self.module = nn.Linear(4, 10)
        self.passes = 0

    def forward(self, z: Tensor, draw: tuple = (), *, keep_buffers: bool = False) -> Tensor:  # noqa: ARG002
        assert keep_buffers
        self.passes += 1
        return self.module(z)


@pytest.mark.parametrize("lam", [0.0, 1.0])
def test_the_ends_of_lambda_are_the_plain_losses(lam: float) -> None:
    """g2: λ = 1 is the client's own loss, λ = 0 its partner's."""
    head, parts, at = PlainHead(), parts_of(), At(seed=3)
    mix = Fixed(lam=lam, partners=1)
    wanted = torch.tensor(0.0)
    for part in parts:
        ((other, _),) = mix.draw(part, [p for p in parts if p is not part], at)
        seen = part if lam else other
        wanted = wanted + part.weight * F.cross_entropy(head.module(seen.z.detach()), seen.y)
    torch.testing.assert_close(mix.extra_loss(head, parts, at), wanted)
    assert head.passes == 1, "however many pairs"


def test_soft_labels_are_exact() -> None:
    """g8, and f7: several partners weigh as much as one."""
    head, parts, at = PlainHead(), parts_of((6, 4, 5)), At(seed=1, step=4)
    mix = Mixup(partners=2, per="sample", alpha=0.7)
    wanted = torch.tensor(0.0)
    for part in parts:
        drawn = mix.draw(part, [p for p in parts if p is not part], at)
        assert len(drawn) == 2
        for other, lam in drawn:
            n = min(len(part.y), len(other.y))  # f9
            share = torch.tensor(lam[:n], dtype=torch.float32)[:, None]
            soft = share * F.one_hot(part.y[:n], 10) + (1 - share) * F.one_hot(other.y[:n], 10)
            logits = head.module(share * part.z[:n] + (1 - share) * other.z[:n])
            wanted = wanted + part.weight * F.cross_entropy(logits, soft) / 2
    torch.testing.assert_close(mix.extra_loss(head, parts, at), wanted, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("detached", [True, False])
def test_clients_get_no_gradient_of_the_mixed_loss_unless_they_shall(detached: bool) -> None:
    """g3, f1."""
    head, parts = PlainHead(), parts_of()
    Mixup(detached=detached).extra_loss(head, parts, At(seed=0)).backward()
    assert [part.z.grad is None for part in parts] == [detached] * 3
    assert head.module.weight.grad is not None


def test_mixup_leaves_the_first_iteration_of_the_clients_alone() -> None:
    """g3: lower parts and decoders."""
    one = {"run__rounds": 1, "client__wave": "{ steps = 1 }", "protocol__merge__every": 99, **CNN}
    mixed, plain = run(make_config("locfedmix", **one)), run(make_config("locfedsl", **one))
    for client in range(3):
        assert_same_bits(lower_of(mixed, client), lower_of(plain, client))
        assert_same_bits(aux_of(mixed, client), aux_of(plain, client))
    heads = [s.coordinator.bank.get("head").digest() for s in (mixed, plain)]
    assert heads[0] != heads[1]


def test_mu_weighs_the_lower_segments_share_and_not_the_decoders() -> None:
    """g4: one step."""
    one = {"run__rounds": 1, "client__wave": "{ steps = 1 }", "protocol__merge__every": 99, **CNN}
    runs = [run(make_config("locfedsl", protocol__learner__mu=mu, **one)) for mu in (0.0, 0.5, 5.0)]
    assert len({repr([t.tolist() for t in aux_of(r, 0).values()]) for r in runs}) == 1
    assert len({repr([t.tolist() for t in lower_of(r, 0).values()]) for r in runs}) == 3


def test_after_averaging_lower_parts_and_decoders_are_the_same_everywhere() -> None:
    """g5: buffers too."""
    simulation = run(
        make_config("locfedmix", **{**CNN, "model__args": "{ channels = [4, 8], hidden = 16, batch_norm = true }"})
    )
    for client in (1, 2):
        assert_same_bits(lower_of(simulation, client), lower_of(simulation, 0))
        assert_same_bits(aux_of(simulation, client), aux_of(simulation, 0))


def test_one_client_is_not_mixed_with_itself() -> None:
    """g6."""
    head = PlainHead()
    assert Mixup(partners=3).extra_loss(head, parts_of((6,)), At(seed=0)) is None
    alone, plain = (run(make_config(p, run__clients=1, **CNN)) for p in ("locfedmix", "locfedsl"))
    assert_same_bits(alone.coordinator.bank.get("head").state(), plain.coordinator.bank.get("head").state())


def test_the_heads_batch_norm_learns_from_plain_batches_alone() -> None:
    """f6: running statistics and counters, as without mixup, of the same activations."""
    one = {"run__rounds": 1, "client__wave": "{ steps = 1 }"}
    args = {"model__name": '"cnn"', "model__args": "{ channels = [4, 8], hidden = 16, batch_norm = true }"}
    heads = [run(make_config(p, **one, **args)).coordinator.bank.get("head").state() for p in ("locfedmix", "locfedsl")]
    buffers = [name for name in heads[0] if "running" in name or "num_batches" in name]
    assert buffers
    assert all(torch.equal(heads[0][name], heads[1][name]) for name in buffers)


def training_bytes(preset: str, **overrides: object) -> tuple[dict[str, int], dict[str, int]]:
    """({direction: payload of activations and gradients}, {direction: of weights}), and no wire kind besides."""
    tensors, weights = {"up": 0, "down": 0}, {"up": 0, "down": 0}

    def count(direction: str, message: object) -> None:
        if isinstance(message, Smashed) and message.train:
            tensors[direction] += 4 * message.z.numel()
        elif isinstance(message, Gradient) and message.dz is not None:
            tensors[direction] += 4 * message.dz.numel()
        elif isinstance(message, Done):
            weights[direction] += sum(4 * t.numel() for state in message.weights.values() for t in state.values())

    Simulation(make_config(preset, eval__every=0, **overrides), count=count).run()
    return tensors, weights


def test_an_iteration_costs_what_parallel_costs_and_averages_their_weights() -> None:
    """g7."""
    plain, none = training_bytes("parallel", **CNN)
    ours, weights = training_bytes("locfedmix", **CNN)
    assert ours == plain
    network = Network.build(make_config("locfedmix", **CNN))
    size = sum(4 * p.numel() for m in (network.lower, network.aux) for p in m.state_dict().values())
    assert none == {"up": 0, "down": 0}
    assert weights == {"up": 2 * 3 * size, "down": 0}  # rounds, clients; as many come down in Begin


def test_partners_are_others_and_the_draw_is_seeded() -> None:
    """g9."""
    parts, mix = parts_of((4,) * 6), Mixup(partners=3)
    for step in range(50):
        for part in parts:
            others = [p for p in parts if p is not part]
            drawn = mix.draw(part, others, At(seed=0, step=step))
            chosen = [other.client for other, _ in drawn]
            assert part.client not in chosen
            assert len(set(chosen)) == 3
            assert [o.client for o, _ in mix.draw(part, others, At(seed=0, step=step))] == chosen
            assert len({float(x) for x in drawn[0][1]}) == 1, "one λ for each pair"


@pytest.mark.parametrize(("alpha", "variance"), [(1.0, 1 / 12), (4.0, 1 / 36)])
def test_lambda_is_beta(alpha: float, variance: float) -> None:
    """g9."""
    part, other = parts_of((40_000, 4))
    ((_, lam),) = Mixup(alpha=alpha, per="sample").draw(part, [other], At(seed=0))
    assert abs(lam.mean() - 0.5) < 0.01
    assert abs(lam.var() - variance) < 0.002


def test_a_decoder_learns_to_give_the_image_back() -> None:
    """g10."""
    config = make_config("locfedsl", **CNN)
    network, (batch, *_) = Network.build(config), list(batches(config, loaders(config)[0], 0))
    lower, aux = network.lower, network.aux
    step = torch.optim.Adam([*lower.parameters(), *aux.parameters()], lr=1e-2)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(aux(lower(batch.x)), batch.image)
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    torch.testing.assert_close(batch.image, images(config, batch), rtol=1e-5, atol=1e-6)


# --- baselines.md 5, 6


@pytest.mark.parametrize(("preset", "uploads"), [("locsplitfed", 5), ("cse_fsl", 2)])
def test_no_gradient_comes_down_and_one_batch_of_h_goes_up(preset: str, uploads: int) -> None:
    tensors, _ = training_bytes(preset, client__wave="{ steps = 5 }")
    assert tensors == {"up": 2 * 3 * uploads * 32 * 16 * 4, "down": 0}


@pytest.mark.parametrize(("partial", "uploads"), [("skip", 1), ("send", 2), (None, 1)])
def test_a_last_smaller_group_is_skipped_unless_it_is_asked_for(partial: str | None, uploads: int) -> None:
    """Seven batches, h = 5: ⌊7/5⌋ and ⌈7/5⌉."""
    asked = {} if partial is None else {"protocol__learner__partial": f'"{partial}"'}
    tensors, _ = training_bytes("cse_fsl", client__wave="{ steps = 7 }", protocol__learner__send_every=5, **asked)
    assert tensors["up"] == 2 * 3 * uploads * 32 * 16 * 4


@given(
    st.integers(0, 40), st.integers(1, 12), st.sampled_from(["first", "last"]), st.sampled_from([None, "skip", "send"])
)
def test_what_a_learner_sends_is_what_the_server_counts(count: int, h: int, upload: str, partial: str | None) -> None:
    """Also that no more batches are made ahead than tell whether one is sent."""
    learner, made = LocalLoss(send_every=h, upload=upload, partial=partial), 0

    def coming() -> Iterator[int]:
        nonlocal made
        for number in range(count):
            made += 1
            yield number

    sent = []
    for number, is_sent in learner._marked(coming()):  # type: ignore[arg-type]
        sent += [number] if is_sent else []
        assert made <= number + (h if upload == "first" and learner.skips else 1) + 1
    groups = [range(start, min(start + h, count)) for start in range(0, count, h)]
    whole = [group for group in groups if len(group) == h or not learner.skips]
    assert sent == list(learner.sent(count)) == [group[0] if upload == "first" else group[-1] for group in whole]


def test_a_client_with_fewer_batches_than_a_group_is_refused_at_ready() -> None:
    """Shards of 15 batches, h = 16: it would take part in a wave and send nothing. Another learner does not care."""
    few = {"client__wave": "{ epochs = 1 }", "protocol__learner__send_every": 16}
    config = make_config("cse_fsl", **few)
    why = r"has 15 batches in a wave, fewer than protocol\.learner\.send_every = 16"
    with pytest.raises(
        ConfigError, match=rf"client 'c0' \(shard 1 of 3\) {why}"
    ):  # of a set that ships it is known before
        run(config)
    with pytest.raises(WireError, match=f"c0 {why}"):
        check_ready(config, Ready(samples=480, batches=15), "c0")
    run(make_config("cse_fsl", **few, protocol__learner__partial='"send"', run__rounds=1))
    run(make_config("cse_fsl", **few | {"client__wave": "{ epochs = 2 }"}, run__rounds=1))
    run(make_config("fsl_sage", **few, run__rounds=1))


def test_only_the_client_with_too_few_batches_is_refused() -> None:
    """The others train on; the run is told who it was, and why."""
    config = make_config(
        "cse_fsl",
        run__clients=2,
        data__shards=3,
        data__partition='{ kind = "dirichlet", alpha = 0.3 }',
        client__wave="{ epochs = 1 }",
    )
    three = config.model_copy(update={"run": config.run.model_copy(update={"clients": 3})})
    batches_of = [loader.batches for loader in loaders(three)]
    few = batches_of.index(min(batches_of))
    assert sorted(batches_of)[1] > min(batches_of)
    settings = dict(config.model_dump(mode="json"))
    settings["protocol"]["learner"]["send_every"] = min(batches_of) + 1
    world = World(RunConfig.from_json(json.dumps(settings)))
    for _ in range(3):
        world.join()
    with pytest.raises(WireError, match=rf"c{few} has {min(batches_of)} batches in a wave, fewer than"):
        world.run()
    world.clients[f"c{few}"].gone = True
    world.run()
    assert world.coordinator.ended is not None
    assert world.coordinator.ended.finished
    (left,) = [fact for fact in world.facts if isinstance(fact, ClientLeft)]
    assert left.client == f"c{few}"


def test_check_says_that_nobody_would_send() -> None:
    config = make_config("cse_fsl", protocol__learner__send_every=5)
    with pytest.raises(
        ConfigError,
        match=r"client\.wave\.steps = 3: every client has 3 batches in a wave, fewer than protocol\.learner\.send_every = 5",
    ):
        inspect(config)


@pytest.mark.parametrize("preset", ["locsplitfed", "cse_fsl"])
def test_clients_do_not_depend_on_the_server(preset: str) -> None:
    """Its learning rate changes the head and nothing else."""
    slow, fast = (run(make_config(preset, server__optimizer=f'{{ kind = "sgd", lr = {lr} }}')) for lr in (1e-6, 0.1))
    for client in range(3):
        assert_same_bits(lower_of(slow, client), lower_of(fast, client))
    assert slow.coordinator.weights_sha256() != fast.coordinator.weights_sha256()


def test_every_batch_to_a_single_head_is_the_other_preset() -> None:
    """h = 1 and one server: for the clients the same."""
    h1 = run(make_config("cse_fsl", protocol__learner__send_every=1))
    other = run(make_config("locsplitfed"))
    for client in range(3):
        assert_same_bits(lower_of(h1, client), lower_of(other, client))


# --- auxiliary networks


@pytest.mark.parametrize(
    ("form", "parameters"), [("linear", 64 * 10 + 10), ("pooled", 4 * 10 + 10), ("mlp", 64 * 8 + 8 + 8 * 10 + 10)]
)
def test_classifiers_have_the_parameters_that_they_say(form: str, parameters: int) -> None:
    aux = Classifier(form=form, hidden=8).make(fit((4, 4, 4), (1, 8, 8)))
    assert sum(p.numel() for p in aux.parameters()) == parameters
    assert aux(torch.zeros(3, 4, 4, 4)).shape == (3, 10)


@pytest.mark.parametrize(
    ("cut", "input"), [((4, 3, 3), (1, 8, 8)), ((4, 3, 3), (3, 9, 7)), ((16,), (1, 8, 8)), ((5, 2), (12,))]
)
def test_decoders_give_back_the_inputs_shape(cut: tuple[int, ...], input: tuple[int, ...]) -> None:
    found = Decoder().make(fit(cut, input))(torch.randn(2, *cut)).detach()
    assert found.shape == (2, *input)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_an_auxiliary_that_does_not_fit_the_cut_is_told_before_anybody_connects() -> None:
    config = make_config("cse_fsl", protocol__learner__aux='{ kind = "classifier", form = "pooled" }')
    with pytest.raises(
        ConfigError, match=r"protocol.learner.aux.form = 'pooled' needs activations \(C, H, W\), this cut has \(16,\)"
    ):
        Network.build(config)


def test_the_auxiliary_may_have_an_optimiser_of_its_own() -> None:
    slow = run(make_config("locfedsl", client__aux_optimizer='{ kind = "sgd", lr = 1e-30 }', **CNN))
    same = Network.build(make_config("locfedsl", **CNN)).aux.state_dict()
    learned = {name: t for name, t in same.items() if "running" not in name and "num_batches" not in name}
    for name, tensor in learned.items():
        torch.testing.assert_close(aux_of(slow, 0)[name], tensor, rtol=0, atol=1e-20)


def test_only_the_clients_hold_auxiliary_networks() -> None:
    simulation = run(make_config("cse_fsl"))
    assert simulation.coordinator.bank.parts == ("head",)


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: Mixup(alpha=0), "alpha"),
        (lambda: Mixup(partners=-1), "partners"),
        (lambda: LocalLoss(send_every=0), "send_every"),
        (lambda: make_config("locfedsl", protocol__learner__mu=-1), "mu"),
    ],
)
def test_bad_values_are_told(build: Any, key: str) -> None:
    with pytest.raises((ValidationError, ConfigError), match=key):
        build()
