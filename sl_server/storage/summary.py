"""The run in one object: `summary.json`, written when the run ends."""

from __future__ import annotations

from typing import Any

import torch

from sl_common import __version__
from sl_common.messages.facts import Evaluated
from sl_server.core.coordinator import Coordinator
from sl_server.storage.inputs import inputs_of
from sl_server.telemetry.ledger import Ledger


def summarise(
    coordinator: Coordinator,
    ledger: Ledger,
    evaluated: Evaluated | None,
    loss: float | None,
    seconds: float,
    failure: str | None = None,
) -> dict[str, Any]:
    """Return the run as one object, the content of `summary.json`."""
    config, ended = coordinator.config, coordinator.ended
    return {
        "name": config.run.name,
        "preset": config.preset,
        "finished": bool(ended and ended.finished),
        "failed": failure is not None,  # a failed run resumes from its newest checkpoint
        "reason": failure or (ended.reason if ended else "cut short"),
        "rounds": config.run.rounds,
        "clients": len(coordinator.roster.known()),
        "train_loss": loss,
        "evaluation": evaluation_fields(evaluated) if evaluated else None,
        "inputs": inputs_of(coordinator.agreement.inputs),
        "bytes": ledger.by_direction("wire"),
        "payload_bytes": ledger.by_direction("payload"),
        "seconds": round(seconds, 3),
        "weights_sha256": coordinator.weights_sha256(),
        "seed": config.run.seed,
        "threads": config.run.threads,
        "device": coordinator.device,  # the head's device; each client reports its own
        "torch": torch.__version__,
        "cutlayer": __version__,
    }


def evaluation_fields(fact: Evaluated) -> dict[str, Any]:
    """Return an evaluation as it is written: the round counts from 1."""
    return {
        "round": fact.round + 1,
        "shared": fact.shared,
        "accuracy": fact.accuracy,
        "min": fact.lowest,
        "max": fact.highest,
        "loss": fact.loss,
        "samples": fact.samples,
        "clients": {
            name: {"accuracy": s.accuracy, "loss": s.loss, "samples": s.samples} for name, s in fact.clients.items()
        },
    }
