"""What a person at the server sees: a progress bar on a terminal, plain lines in a pipe, or one JSON line an event."""

from __future__ import annotations

from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from sl_common.host.devices import described
from sl_common.host.log import CommandLog, Level
from sl_common.host.progress import Beat, Seldom, make_bar, size, wants_bar
from sl_common.host.text import MAX_OURS, printable
from sl_common.messages.facts import (
    AuxAligned,
    BatchEvaluated,
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
    RunEnded,
    Trained,
    WaveBegun,
)
from sl_common.messages.training import WIRE_KINDS
from sl_server.console.progress import RunProgress
from sl_server.telemetry.ledger import Ledger


class ServerConsole:
    """Lines; with `as_json`, one JSON object each."""

    def __init__(
        self,
        ledger: Ledger,
        rounds: int,
        *,
        clients: int = 1,
        as_json: bool = False,
        level: Level = Level.INFO,
    ) -> None:
        """`clients`: how many the run waits for."""
        self._ledger = ledger
        self._rounds = rounds
        self._json = as_json
        self._console = Console(highlight=False, soft_wrap=True)
        self._log = CommandLog("server", as_json=as_json, level=level, show=self._print if self._is_bar else None)
        self.progress = RunProgress(ledger, rounds, clients)
        self._beat, self._seldom = Beat(self.tick), Seldom()

    _is_bar = False

    def _print(self, text: str) -> None:
        self._console.print(Text(text))

    def say(self, event: str, line: str, *, level: Level = Level.INFO, **fields: Any) -> None:
        """Record one event. The line may quote a client."""
        self._log.say(event, line, level, fields)

    def warn(self, text: str) -> None:
        """Something that a person should know of."""
        self.say("warning", f"warning: {text}", level=Level.WARNING, text=text)

    def begin(self) -> None:
        """From now on say every few seconds how far the run has come."""
        self.progress.bytes()  # from here the first rate counts
        self._beat.start()

    def tick(self) -> None:
        """Say how far the run has come."""
        found = self.progress.line()
        if found is None:
            return
        text, fields = found
        if fields["state"] != "waiting" or self._seldom.lets(text):
            self.say("progress", text, **fields)

    def device(self, device: str, asked: str) -> None:
        """Say on which device the head is computed, and what was asked for."""
        text = f"computing the head on {described(device)}" + (" (device = auto)" if asked == "auto" else "")
        self.say("device", text, device=device, asked=asked)

    def fact(self, fact: Fact) -> None:
        """Say what matters to a person."""
        self.progress.fact(fact)
        match fact:
            case Trained() | BatchEvaluated():
                pass
            case ClientJoined(client=client, shard=shard):
                self.say("joined", f"{client} joined (shard {shard + 1})", client=client, shard=shard + 1)
            case ClientLeft(client=client, reason=reason):
                self.say("left", f"{client} left: {printable(reason)}", client=client, reason=reason)
            case RedoSpent(client=client, limit=limit):
                self.warn(
                    f"{client} was lost again and has caused {limit} rollbacks without finishing a wave that was kept, "
                    f"run.redo_limit = {limit}: the run goes on without it"
                )
            case ClientsDoubtful(text=text):
                self.warn(text)
            case ClientAway(client=client):
                self.say("away", f"{client} is away: its stream is broken", client=client)
            case ClientBack(client=client):
                self.say("back", f"{client} is back", client=client)
            case ClientLate(client=client, round=number):
                self.say(
                    "late",
                    f"round {number + 1}/{self._rounds}: {client} is too slow, the wave goes on without it",
                    client=client,
                    round=number + 1,
                )
            case AuxAligned(client=client, round=number, samples=samples, before=before, after=after, took_s=took):
                self.say(
                    "aligned",
                    f"round {number + 1}/{self._rounds}: {client}'s auxiliary network aligned on {samples} samples in {took:.1f} s, "
                    f"squared error {before:.4g} → {after:.4g}",
                    client=client,
                    round=number + 1,
                    samples=samples,
                    before=before,
                    after=after,
                    took_s=took,
                )
            case RoundEnded(round=number, loss=loss):
                up, down = self._ledger.total("up"), self._ledger.total("down")
                text = "no batch trained" if loss is None else f"loss {loss:.4f}"
                self.say(
                    "round",
                    f"round {number + 1}/{self._rounds}: {text}, {size(up)} up, {size(down)} down so far",
                    round=number + 1,
                    loss=loss,
                    bytes_up=up,
                    bytes_down=down,
                )
            case Evaluated(round=number, accuracy=accuracy):
                spread = (
                    "" if fact.shared else f" (mean of {len(fact.clients)}: {fact.lowest:.2%} to {fact.highest:.2%})"
                )
                self.say(
                    "evaluation",
                    f"round {number + 1}/{self._rounds}: accuracy {accuracy:.2%}{spread}, loss {fact.loss:.4f} on {fact.samples} held-out samples",
                    round=number + 1,
                    accuracy=accuracy,
                    min=fact.lowest,
                    max=fact.highest,
                    loss=fact.loss,
                    samples=fact.samples,
                )
            case _:
                pass

    def stop(self) -> None:
        """Say nothing more by itself, and leave the terminal as it was."""
        self._beat.stop()

    def summary(self, summary: dict[str, Any], where: str | None) -> None:
        """The table at the end."""
        self.stop()
        if self._json:
            self.say("summary", "", **summary)
            return
        if not self._log.shows(Level.INFO):
            return
        for part in _last_words(summary):
            self._console.print(part)
        if where:
            self._console.print(Text(printable(f"everything is in {where}", MAX_OURS)))


class RunBar(ServerConsole):
    """A progress bar for the wave under way, and lines above it."""

    _is_bar = True

    def __init__(self, ledger: Ledger, rounds: int, *, clients: int = 1, level: Level = Level.INFO) -> None:
        super().__init__(ledger, rounds, clients=clients, level=level)
        self._bar = make_bar(self.progress.wire, self._console)
        self._task = self._bar.add_task("waiting for clients", total=None, loss="")
        self._bar.start()

    def begin(self) -> None:
        """The bar says it."""

    def fact(self, fact: Fact) -> None:
        """Move the bar too."""
        super().fact(fact)
        match fact:
            case WaveBegun(evaluate=evaluate):
                what = "evaluating" if evaluate else "training"
                about = f"round {fact.round + 1}/{fact.rounds} {what}"
                self._bar.reset(self._task, description=about, total=self.progress.total, loss="")
            case Trained(loss=loss):
                self._bar.update(self._task, completed=self.progress.done, loss=f"loss {loss:.4f}")
            case BatchEvaluated():
                self._bar.update(self._task, completed=self.progress.done)
            case RunEnded():
                self._bar.stop()
            case _:
                pass

    def stop(self) -> None:
        """Take the bar away."""
        super().stop()
        self._bar.stop()


def make_server_console(
    ledger: Ledger, rounds: int, *, clients: int, as_json: bool, level: Level = Level.INFO
) -> ServerConsole:
    """Make what fits where the output goes."""
    if wants_bar(level, as_json=as_json):
        return RunBar(ledger, rounds, clients=clients, level=level)
    return ServerConsole(ledger, rounds, clients=clients, as_json=as_json, level=level)


def _last_words(summary: dict[str, Any]) -> list[RenderableType]:
    """What came of the run, and its bytes; the fingerprint on a line of its own, which no table's width can cut."""
    heading = f"run {summary['name']} ({summary['preset'] or 'own protocol'}): {summary['reason']}"
    fingerprint = f"weights sha256 {summary['weights_sha256']}"
    return [
        Text(printable(heading, MAX_OURS), style="bold"),
        _results(summary),
        _bytes(summary["bytes"]),
        Text(fingerprint),
    ]


def _results(summary: dict[str, Any]) -> Table:
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column()
    evaluation = summary["evaluation"]
    if evaluation:
        spread = (
            "" if evaluation["shared"] else f", mean over clients ({evaluation['min']:.2%} to {evaluation['max']:.2%})"
        )
        table.add_row("accuracy", f"{evaluation['accuracy']:.2%} of {evaluation['samples']:,} held-out samples{spread}")
        table.add_row("loss, held out", f"{evaluation['loss']:.4f}")
    if summary["train_loss"] is not None:
        table.add_row("loss, last round", f"{summary['train_loss']:.4f}")
    table.add_row("time", f"{summary['seconds']:.1f} s")
    return table


def _bytes(by_direction: dict[str, dict[str, int]]) -> Table:
    table = Table()
    table.add_column("bytes", style="bold")
    for direction in by_direction:
        table.add_column(direction, justify="right")
    for kind in WIRE_KINDS:
        if any(kind in kinds for kinds in by_direction.values()):
            table.add_row(kind, *(size(kinds[kind]) if kind in kinds else "" for kinds in by_direction.values()))
    table.add_section()
    table.add_row("all", *(size(sum(kinds.values())) for kinds in by_direction.values()))
    return table
