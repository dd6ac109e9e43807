"""Facts of a run as lines for people, with the fields of the same event as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sl_common.host.log import Level
from sl_common.host.progress import size
from sl_common.host.text import printable
from sl_common.messages.facts import (
    AuxAligned,
    ClientAway,
    ClientBack,
    ClientJoined,
    ClientLate,
    ClientLeft,
    ClientsDoubtful,
    Evaluated,
    Fact,
    RedoSpent,
    RoundEnded,
)
from sl_server.telemetry.ledger import Ledger


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsoleEvent:
    """One line for people, and the same for programs. The line may quote a client."""

    name: str
    line: str
    fields: Mapping[str, Any]
    level: Level = Level.INFO


def event_of(fact: Fact, rounds: int, ledger: Ledger) -> ConsoleEvent | None:
    """Return the event to show for a fact, or None for one that is not shown. `rounds`: planned rounds of the run."""
    match fact:
        case ClientJoined() | ClientLeft() | ClientAway() | ClientBack() | ClientLate():
            return _of_client(fact, rounds)
        case RedoSpent(client=client, limit=limit):
            return _warning(
                f"{client} was lost again and has caused {limit} rollbacks without finishing a wave that was kept, "
                f"run.redo_limit = {limit}: the run goes on without it"
            )
        case ClientsDoubtful(text=text):
            return _warning(text)
        case AuxAligned():
            return _alignment(fact, rounds)
        case RoundEnded():
            return _round(fact, rounds, ledger)
        case Evaluated():
            return _evaluation(fact, rounds)
        case _:
            return None


def _warning(text: str) -> ConsoleEvent:
    return ConsoleEvent(name="warning", line=f"warning: {text}", fields={"text": text}, level=Level.WARNING)


def _of_client(fact: ClientJoined | ClientLeft | ClientAway | ClientBack | ClientLate, rounds: int) -> ConsoleEvent:
    client, fields = fact.client, dict[str, Any](client=fact.client)
    match fact:
        case ClientJoined(shard=shard):
            name, line = "joined", f"{client} joined (shard {shard + 1})"
            fields["shard"] = shard + 1
        case ClientLeft(reason=reason):
            name, line = "left", f"{client} left: {printable(reason)}"
            fields["reason"] = reason
        case ClientAway():
            name, line = "away", f"{client} is away: its stream is broken"
        case ClientBack():
            name, line = "back", f"{client} is back"
        case ClientLate(round=number):
            name = "late"
            line = f"round {number + 1}/{rounds}: {client} is too slow, the wave goes on without it"
            fields["round"] = number + 1
    return ConsoleEvent(name=name, line=line, fields=fields)


def _alignment(fact: AuxAligned, rounds: int) -> ConsoleEvent:
    return ConsoleEvent(
        name="aligned",
        line=f"round {fact.round + 1}/{rounds}: {fact.client}'s auxiliary network aligned on {fact.samples} samples "
        f"in {fact.took_s:.1f} s, squared error {fact.before:.4g} → {fact.after:.4g}",
        fields={
            "client": fact.client,
            "round": fact.round + 1,
            "samples": fact.samples,
            "before": fact.before,
            "after": fact.after,
            "took_s": fact.took_s,
        },
    )


def _round(fact: RoundEnded, rounds: int, ledger: Ledger) -> ConsoleEvent:
    up, down = ledger.total("up"), ledger.total("down")
    text = "no batch trained" if fact.loss is None else f"loss {fact.loss:.4f}"
    return ConsoleEvent(
        name="round",
        line=f"round {fact.round + 1}/{rounds}: {text}, {size(up)} up, {size(down)} down so far",
        fields={"round": fact.round + 1, "loss": fact.loss, "bytes_up": up, "bytes_down": down},
    )


def _evaluation(fact: Evaluated, rounds: int) -> ConsoleEvent:
    spread = "" if fact.shared else f" (mean of {len(fact.clients)}: {fact.lowest:.2%} to {fact.highest:.2%})"
    return ConsoleEvent(
        name="evaluation",
        line=f"round {fact.round + 1}/{rounds}: accuracy {fact.accuracy:.2%}{spread}, loss {fact.loss:.4f} "
        f"on {fact.samples} held-out samples",
        fields={
            "round": fact.round + 1,
            "accuracy": fact.accuracy,
            "min": fact.lowest,
            "max": fact.highest,
            "loss": fact.loss,
            "samples": fact.samples,
        },
    )
