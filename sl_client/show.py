"""What a person at the device sees: a progress bar on a terminal, plain lines in a pipe, or one JSON line an event."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from sl_common.host.devices import described
from sl_common.host.text import MAX_OURS, printable
from sl_common.messages import Aligned, Begin, Bye, Done, Gradient, Late, Welcome
from sl_common.participate import Seat


class Show(Protocol):
    """The events of a client's life."""

    def waiting(self, server: str, why: str) -> None: ...
    def seated(self, welcome: Welcome, seat: Seat) -> None: ...
    def begin(self, begin: Begin) -> None: ...
    def step(self, reply: Gradient) -> None: ...
    def aligned(self, aligned: Aligned) -> None: ...
    def late(self, late: Late) -> None: ...
    def done(self, done: Done) -> None: ...
    def warn(self, text: str) -> None: ...
    def lost(self, why: str) -> None: ...
    def forgotten(self) -> None: ...
    def ended(self, bye: Bye) -> None: ...


class Lines:
    """One line an event; with `as_json`, one JSON object."""

    def __init__(self, *, as_json: bool = False) -> None:
        self._json = as_json
        self._waiting = False
        self._loss, self._replies = 0.0, 0
        self._begun = time.monotonic()

    def say(self, event: str, text: str, **fields: Any) -> None:
        """Print one event. The text may quote the server."""
        line = json.dumps({"event": event, **fields}) if self._json else printable(text, MAX_OURS)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def waiting(self, server: str, why: str) -> None:
        """No server there yet; said once."""
        if not self._waiting:
            self.say("waiting", f"waiting for a server at {server} ({why})", server=server, why=why)
        self._waiting = True

    def seated(self, welcome: Welcome, seat: Seat) -> None:
        """The run is known."""
        config, ready, lower = seat.config, seat.ready, seat.bank.get("lower")
        self._waiting = False
        self.say(
            "joined",
            f"joined run {config.run.name!r} as {welcome.client}: shard {welcome.shard + 1} of {welcome.shards} of {config.data.name}, "
            f"{ready.samples} samples in {ready.batches} batches; {config.preset or 'own protocol'}, model {config.model.name} cut at "
            f"{config.model.cut}, {lower.nbytes / 1e3:,.1f} kB on this device, computed on {described(str(lower.device))}",
            run=config.run.name,
            client=welcome.client,
            shard=welcome.shard,
            shards=welcome.shards,
            samples=ready.samples,
            batches=ready.batches,
            lower_bytes=lower.nbytes,
            device=str(lower.device),
        )

    def begin(self, begin: Begin) -> None:  # noqa: ARG002  (a bar needs it)
        """A wave begins."""
        self._loss, self._replies = 0.0, 0
        self._begun = time.monotonic()

    def step(self, reply: Gradient) -> None:
        """A reply came."""
        self._loss, self._replies = self._loss + reply.loss, self._replies + 1

    def aligned(self, aligned: Aligned) -> None:
        """The wait for the auxiliary network is over."""
        self.say(
            "aligned",
            f"round {aligned.round + 1}: auxiliary network aligned by the server, squared error {aligned.before:.4g} → {aligned.after:.4g}",
            round=aligned.round + 1,
            before=aligned.before,
            after=aligned.after,
        )

    def late(self, late: Late) -> None:
        """The wave went on without us."""
        self.say(
            "late", f"round {late.round + 1}: too slow, the round goes on without this client", round=late.round + 1
        )

    def done(self, done: Done) -> None:
        """The wave is over."""
        loss = (
            self._loss / self._replies if self._replies else (done.loss_sum / done.samples if done.loss_sum else None)
        )
        seconds = time.monotonic() - self._begun
        what = "trained" if done.digests else "evaluated"
        self.say(
            what,
            f"round {done.round + 1}: {what} {done.samples} samples in {seconds:.1f} s"
            + ("" if loss is None else f", loss {loss:.4f}"),
            round=done.round + 1,
            samples=done.samples,
            seconds=round(seconds, 3),
            loss=loss,
        )

    def warn(self, text: str) -> None:
        """Something that a person should know of."""
        self.say("warning", f"warning: {text}", why=text)

    def lost(self, why: str) -> None:
        """The stream broke."""
        self.say("lost", f"lost the server ({why}); trying again", why=why)

    def forgotten(self) -> None:
        """The server does not know us any more."""
        self.say("forgotten", "the server no longer knows this session; joining again")

    def stop(self) -> None:
        """Leave the terminal as it was."""

    def ended(self, bye: Bye) -> None:
        """The run is over for this client."""
        self.say("ended", f"over: {bye.reason}", reason=bye.reason, finished=bye.finished)


class Bar(Lines):
    """A progress bar for the round under way, and lines above it."""

    def __init__(self) -> None:
        super().__init__()
        self._console = Console()
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("waiting", total=None, loss="")

    def say(self, event: str, text: str, **fields: Any) -> None:  # noqa: ARG002
        """Print above the bar."""
        self._console.print(Text(printable(text, MAX_OURS)), soft_wrap=True)

    def begin(self, begin: Begin) -> None:
        """A new bar."""
        super().begin(begin)
        self._progress.start()
        what = "evaluating" if begin.evaluate else "training"
        self._progress.reset(
            self._task, description=f"round {begin.round + 1}/{begin.rounds} {what}", total=begin.steps or None, loss=""
        )

    def step(self, reply: Gradient) -> None:
        """One batch further."""
        super().step(reply)
        self._progress.update(self._task, advance=1, loss=f"loss {self._loss / self._replies:.4f}")

    def ended(self, bye: Bye) -> None:
        """Take the bar away."""
        self._progress.stop()
        super().ended(bye)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._progress.stop()


def make_show(*, as_json: bool) -> Lines:
    """What fits where the output goes."""
    return Bar() if sys.stdout.isatty() and not as_json else Lines(as_json=as_json)
