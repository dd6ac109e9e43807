"""What a person at the device sees: a progress bar on a terminal, plain lines in a pipe, or one JSON line an event."""

from __future__ import annotations

import time
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

from sl_client.console.progress import WaveProgress
from sl_common.client.seat import Seat
from sl_common.host.devices import described
from sl_common.host.log import CommandLog, Level, name_run
from sl_common.host.progress import Beat, Seldom, make_bar, wants_bar
from sl_common.host.text import MAX_OURS, printable
from sl_common.messages.training import Aligned, Begin, Bye, Done, Gradient, Late, Welcome


class ClientConsole(Protocol):
    """The events of a client's life."""

    def waiting(self, server: str, why: str) -> None: ...
    def seated(self, welcome: Welcome, seat: Seat) -> None: ...
    def begin(self, begin: Begin) -> None: ...
    def batch(self, samples: int) -> None: ...
    def asked(self) -> None: ...
    def moved(self, up: int, down: int) -> None: ...
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

    _is_bar = False

    def __init__(self, *, as_json: bool = False, level: Level = Level.INFO) -> None:
        self._log = CommandLog("client", as_json=as_json, level=level, show=self._print if self._is_bar else None)
        self._waiting = False
        self._begun = time.monotonic()
        self._server = ""
        self.progress = WaveProgress()
        self._beat, self._seldom = Beat(self.tick), Seldom()

    def _print(self, text: str) -> None:
        """Show a line of text; only a bar does."""

    def say(self, event: str, text: str, *, level: Level = Level.INFO, **fields: Any) -> None:
        """Record one event. The text may quote the server."""
        self._log.say(event, printable(text, MAX_OURS), level, fields)

    def start(self) -> None:
        """From now on say every few seconds how far this client has come."""
        self.progress.wire()  # from here the first rate counts
        self._beat.start()

    def tick(self) -> None:
        """Say how far this client has come."""
        text, fields = self.progress.line()
        if fields["round"] is not None or self._seldom.lets(text):
            self.say("progress", text, **fields)

    def waiting(self, server: str, why: str) -> None:
        """No server there yet; said once."""
        self._server = server
        self.progress.looking(server)
        if not self._waiting:
            self.say("waiting", f"waiting for a server at {server} ({why})", server=server, why=why)
        self._waiting = True

    def seated(self, welcome: Welcome, seat: Seat) -> None:
        """The run is known."""
        config, ready, lower = seat.config, seat.ready, seat.bank.get("lower")
        self._waiting = False
        name_run(config.run.name)
        self.progress.seated(seat)
        self.say(
            "joined",
            f"joined run {config.run.name!r} as {welcome.client}: shard {welcome.shard + 1} of {welcome.shards} of {config.data.name}, "
            f"{ready.samples} samples in {ready.batches} batches; {config.preset or 'own protocol'}, model {config.model.name} cut at "
            f"{config.model.cut}, {lower.nbytes / 1e3:,.1f} kB on this device, computed on {described(str(lower.device))}",
            client=welcome.client,
            shard=welcome.shard + 1,
            shards=welcome.shards,
            samples=ready.samples,
            batches=ready.batches,
            lower_bytes=lower.nbytes,
            device=str(lower.device),
        )

    def begin(self, begin: Begin) -> None:
        """A wave begins."""
        self.progress.begin(begin)
        self._begun = time.monotonic()

    def batch(self, samples: int) -> None:
        """A batch of the wave is done."""
        self.progress.batch(samples)

    def asked(self) -> None:
        """A batch goes out."""
        self.progress.asked()

    def moved(self, up: int, down: int) -> None:
        """Bytes went over the wire."""
        self.progress.up, self.progress.down = self.progress.up + up, self.progress.down + down

    def step(self, reply: Gradient) -> None:
        """A reply came."""
        self.progress.answered(reply)

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
        loss = self.progress.loss
        if loss is None and done.loss_sum:
            loss = done.loss_sum / done.samples
        self.progress.done()
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
        self.say("warning", f"warning: {text}", level=Level.WARNING, why=text)

    def lost(self, why: str) -> None:
        """The stream broke."""
        self.progress.looking(self._server)
        self.say("lost", f"lost the server ({why}); trying again", why=why)

    def forgotten(self) -> None:
        """The server does not know us any more."""
        self.say("forgotten", "the server no longer knows this session; joining again")

    def stop(self) -> None:
        """Say nothing more by itself, and leave the terminal as it was."""
        self._beat.stop()

    def ended(self, bye: Bye) -> None:
        """The run is over for this client."""
        self.say("ended", f"over: {bye.reason}", reason=bye.reason, finished=bye.finished)


class WaveBar(Lines):
    """A progress bar for the round under way, and lines above it."""

    _is_bar = True

    def __init__(self, *, level: Level = Level.INFO) -> None:
        super().__init__(level=level)
        self._console = Console(highlight=False)
        self._bar = make_bar(self.progress.wire, self._console)
        self._task = self._bar.add_task("waiting", total=None, loss="")

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def start(self) -> None:
        """The bar says it."""

    def begin(self, begin: Begin) -> None:
        """A new bar, which counts samples."""
        super().begin(begin)
        self._bar.start()
        about = f"round {begin.round + 1}/{begin.rounds} {'evaluating' if begin.evaluate else 'training'}"
        self._bar.reset(self._task, description=about, total=self.progress.expected, loss="")

    def batch(self, samples: int) -> None:
        """One batch further."""
        super().batch(samples)
        self._bar.update(self._task, completed=self.progress.samples)

    def step(self, reply: Gradient) -> None:
        """The loss so far."""
        super().step(reply)
        if self.progress.begun is not None and not self.progress.begun.evaluate:
            self._bar.update(self._task, loss=f"loss {self.progress.loss:.4f}")

    def ended(self, bye: Bye) -> None:
        """Take the bar away."""
        self._bar.stop()
        super().ended(bye)

    def stop(self) -> None:
        """Leave the terminal as it was."""
        super().stop()
        self._bar.stop()


def make_client_console(*, as_json: bool, level: Level = Level.INFO) -> Lines:
    """Make what fits where the output goes."""
    if wants_bar(level, as_json=as_json):
        return WaveBar(level=level)
    return Lines(as_json=as_json, level=level)
