"""What every algorithm says on the wire, as text to be read: two clients, two rounds, two batches a round.

`python tests/test_scenarios.py` writes tests/scenarios/<preset>.txt anew after a conversation was changed on purpose.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import Tensor
from world import make_config

from sl_common.config.presets import PRESETS
from sl_common.messages.training import Aligned, Begin, Bye, Done, Gradient, Ready, Smashed, Welcome
from sl_server.simulation.simulation import Simulation

SCENARIOS = Path(__file__).with_name("scenarios")


def transcript(preset: str) -> str:
    """One line a message, in the simulator's order; → is to the server."""
    lines: list[str] = []
    gate = {"protocol__gate__threshold": 1e300} if preset == "loss_async" else {}  # A, A, B, C
    rounds = 4 if gate else 2
    config = make_config(
        preset,
        run__rounds=rounds,
        run__clients=2,
        client__wave="{ steps = 2 }",
        data__batch_size=32,
        eval__every=0,
        eval__samples=32,
        **gate,
    )
    simulation = Simulation(config)
    for name, client in simulation._clients.items():

        def count(direction: str, sent: object, name: str = name) -> None:
            line = said(sent)
            if line:
                lines.append(f"{'→' if direction == 'up' else '←'} {name} {line}")

        client._count = count
    simulation.run()
    return "\n".join(collapsed(lines)) + "\n"


def said(message: object) -> str:
    """The message in a line; nothing for a frame."""
    match message:
        case Welcome(shard=shard, shards=shards):
            return f"welcome shard {shard + 1} of {shards}"
        case Ready(samples=samples, batches=batches):
            return f"ready {samples} samples, {batches} batches"
        case Begin(evaluate=True, weights=weights, slice=part, slices=parts):
            return f"begin evaluation {part + 1} of {parts}{held(weights)}"
        case Begin():
            asks = [
                word
                for word, asked in (
                    ("send", message.directive.send),
                    ("update", message.directive.update),
                    ("await alignment", message.directive.align),
                )
                if asked
            ]
            upload = f", upload {' and '.join(message.upload)}" if message.upload else ""
            where = f"round {message.round + 1} wave {message.wave + 1}"
            return f"begin {where}, {message.steps} batches, {' and '.join(asks)}{upload}{held(message.weights)}"
        case Smashed(step=step, z=z, train=train, needs_grad=needs):
            kind = {(True, True): "step", (True, False): "forward only", (False, False): "evaluation"}[train, needs]
            return f"smashed {step} {shape(z)} {kind}"
        case Aligned(weights=weights):
            return f"aligned{held(weights)}"
        case Gradient(step=step, dz=dz):
            return f"gradient {step} {shape(dz)}" if dz is not None else f"reply {step}, no gradient"
        case Done(steps=steps, samples=samples, weights=weights):
            return f"done {steps} batches, {samples} samples{held(weights)}"
        case Bye(reason=reason):
            return f"bye: {reason}"
        case _:
            return ""


def held(weights: object) -> str:
    """The parts that a message carries."""
    return f" [{' and '.join(weights)}]" if weights else ""


def shape(z: Tensor) -> str:
    """32×16."""
    return "×".join(str(n) for n in z.shape)


def collapsed(lines: list[str]) -> list[str]:
    """The evaluation's many batches and their replies as one line for each client."""
    out: list[str] = []
    evaluating: set[str] = set()
    for line in lines:
        arrow, name, *words = line.split()
        if words[-1] == "evaluation":
            if name not in evaluating:
                out.append(f"{arrow} {name} smashed …, evaluation, each with a reply")
            evaluating.add(name)
        elif not (words[0] == "reply" and name in evaluating):
            evaluating -= {name} if words[0] == "begin" else set()
            out.append(line)
    return out


@pytest.mark.parametrize("preset", PRESETS)
def test_the_conversation_is_the_one_that_was_reviewed(preset: str) -> None:
    assert transcript(preset) == (SCENARIOS / f"{preset}.txt").read_text()


def test_there_is_a_scenario_for_each_preset_and_no_other() -> None:
    assert {path.stem for path in SCENARIOS.glob("*.txt")} == set(PRESETS)


if __name__ == "__main__":
    SCENARIOS.mkdir(exist_ok=True)
    for name in PRESETS:
        (SCENARIOS / f"{name}.txt").write_text(transcript(name))
