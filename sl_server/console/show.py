"""The server's console: a progress bar on a terminal, plain lines in a pipe, or one JSON object a line."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from sl_common.host.devices import described
from sl_common.host.log import CommandLog, Level
from sl_common.host.progress import Beat, Seldom, make_bar, wants_bar
from sl_common.host.text import MAX_OURS, printable
from sl_common.messages.facts import BatchEvaluated, Fact, RunEnded, Trained, WaveBegun
from sl_server.console.events import event_of
from sl_server.console.progress import RunProgress
from sl_server.console.results import summary_parts
from sl_server.telemetry.ledger import Ledger


class ServerConsole:
    """Prints lines; with `as_json`, one JSON object each."""

    def __init__(
        self,
        ledger: Ledger,
        rounds: int,
        *,
        clients: int = 1,
        as_json: bool = False,
        level: Level = Level.INFO,
    ) -> None:
        """`clients`: number of clients that the run waits for at its start."""
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
        """Print a warning."""
        self.say("warning", f"warning: {text}", level=Level.WARNING, text=text)

    def begin(self) -> None:
        """Begin to print progress every few seconds."""
        self.progress.bytes()  # the first rate counts from here
        self._beat.start()

    def tick(self) -> None:
        """Print the progress so far."""
        found = self.progress.line()
        if found is None:
            return
        text, fields = found
        if fields["state"] != "waiting" or self._seldom.lets(text):
            self.say("progress", text, **fields)

    def device(self, device: str, asked: str) -> None:
        """Print the device that computes the head, and the one that was asked for."""
        text = f"computing the head on {described(device)}" + (" (device = auto)" if asked == "auto" else "")
        self.say("device", text, device=device, asked=asked)

    def fact(self, fact: Fact) -> None:
        """Print the fact if it matters to a person."""
        self.progress.fact(fact)
        if isinstance(fact, Trained | BatchEvaluated):  # one a batch; a bar shows them
            return
        event = event_of(fact, self._rounds, self._ledger)
        if event is not None:
            self.say(event.name, event.line, level=event.level, **event.fields)

    def stop(self) -> None:
        """Stop printing progress, and leave the terminal as it was."""
        self._beat.stop()

    def summary(self, summary: dict[str, Any], where: str | None) -> None:
        """Print the table at the end."""
        self.stop()
        if self._json:
            self.say("summary", "", **summary)
            return
        if not self._log.shows(Level.INFO):
            return
        for part in summary_parts(summary):
            self._console.print(part)
        if where:
            self._console.print(Text(printable(f"everything is in {where}", MAX_OURS)))


class RunBar(ServerConsole):
    """A progress bar for the current wave, with lines above it."""

    _is_bar = True

    def __init__(self, ledger: Ledger, rounds: int, *, clients: int = 1, level: Level = Level.INFO) -> None:
        super().__init__(ledger, rounds, clients=clients, level=level)
        self._bar = make_bar(self.progress.wire, self._console)
        self._task = self._bar.add_task("waiting for clients", total=None, loss="")
        self._bar.start()

    def begin(self) -> None:
        """Do nothing: the bar shows progress all the time."""

    def fact(self, fact: Fact) -> None:
        """Print the fact, and move the bar."""
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
        """Remove the bar."""
        super().stop()
        self._bar.stop()


def make_server_console(
    ledger: Ledger, rounds: int, *, clients: int, as_json: bool, level: Level = Level.INFO
) -> ServerConsole:
    """Return the console that suits the output: a bar on a terminal, else lines."""
    if wants_bar(level, as_json=as_json):
        return RunBar(ledger, rounds, clients=clients, level=level)
    return ServerConsole(ledger, rounds, clients=clients, as_json=as_json, level=level)
