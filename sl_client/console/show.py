"""The output of `sl-client run`: a progress bar on a terminal, plain lines in a pipe, or a JSON line for each event."""

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
    """Calls for the events of a client's run."""

    def waiting(self, server: str, why: str) -> None: ...
    def seated(self, welcome: Welcome, seat: Seat) -> None: ...
    def begin(self, begin: Begin) -> None: ...
    def batch(self, samples: int) -> None: ...
    def batch_sent(self) -> None: ...
    def moved(self, up: int, down: int) -> None: ...
    def step(self, reply: Gradient) -> None: ...
    def aligned(self, aligned: Aligned) -> None: ...
    def late(self, late: Late) -> None: ...
    def done(self, done: Done) -> None: ...
    def warn(self, text: str) -> None: ...
    def lost(self, why: str) -> None: ...
    def forgotten(self) -> None: ...
    def ended(self, bye: Bye) -> None: ...


class ClientLines:
    """Prints one line for each event; with `as_json`, one JSON object."""

    _is_bar = False

    def __init__(self, *, as_json: bool = False, level: Level = Level.INFO) -> None:
        self._log = CommandLog("client", as_json=as_json, level=level, show=self._print if self._is_bar else None)
        self._waiting = False
        self._begun = time.monotonic()
        self._server = ""
        self.progress = WaveProgress()
        self._beat, self._seldom = Beat(self.tick), Seldom()

    def _print(self, text: str) -> None:
        """Show a line of text beside the bar; a subclass with a bar does it."""

    def say(self, event: str, text: str, *, level: Level = Level.INFO, **fields: Any) -> None:
        """Report one event. The text may quote the server, so control characters are escaped."""
        self._log.say(event, printable(text, MAX_OURS), level, fields)

    def start(self) -> None:
        """Start to report the progress every few seconds."""
        self.progress.wire()  # the first rate is counted from here
        self._beat.start()

    def tick(self) -> None:
        """Report the progress."""
        text, fields = self.progress.line()
        if fields["round"] is not None or self._seldom.lets(text):
            self.say("progress", text, **fields)

    def waiting(self, server: str, why: str) -> None:
        """Report that no server answers, once until one does."""
        self._server = server
        self.progress.looking(server)
        if not self._waiting:
            self.say("waiting", f"waiting for a server at {server} ({why})", server=server, why=why)
        self._waiting = True

    def seated(self, welcome: Welcome, seat: Seat) -> None:
        """Report the run and this client's seat in it."""
        config, ready, lower = seat.config, seat.ready, seat.bank.get("lower")
        self._waiting = False
        name_run(config.run.name)
        self.progress.seated(seat)
        self.say(
            "joined",
            f"joined run {config.run.name!r} as {welcome.client}: shard {welcome.shard + 1} of {welcome.shards} of "
            f"{config.data.name}, {ready.samples} samples in {ready.batches} batches; "
            f"{config.preset or 'own protocol'}, model {config.model.name} cut at {config.model.cut}, "
            f"{lower.nbytes / 1e3:,.1f} kB on this device, computed on {described(str(lower.device))}",
            client=welcome.client,
            shard=welcome.shard + 1,
            shards=welcome.shards,
            samples=ready.samples,
            batches=ready.batches,
            lower_bytes=lower.nbytes,
            device=str(lower.device),
        )

    def begin(self, begin: Begin) -> None:
        """Note that a wave begins."""
        self.progress.begin(begin)
        self._begun = time.monotonic()

    def batch(self, samples: int) -> None:
        """Count a batch that is done."""
        self.progress.batch(samples)

    def batch_sent(self) -> None:
        """Count a batch that was sent and needs an answer."""
        self.progress.batch_sent()

    def moved(self, up: int, down: int) -> None:
        """Count bytes on the wire."""
        self.progress.up, self.progress.down = self.progress.up + up, self.progress.down + down

    def step(self, reply: Gradient) -> None:
        """Count the answer to a batch."""
        self.progress.answered(reply)

    def aligned(self, aligned: Aligned) -> None:
        """Report that the server aligned the auxiliary network."""
        self.say(
            "aligned",
            f"round {aligned.round + 1}: auxiliary network aligned by the server, "
            f"squared error {aligned.before:.4g} → {aligned.after:.4g}",
            round=aligned.round + 1,
            before=aligned.before,
            after=aligned.after,
        )

    def late(self, late: Late) -> None:
        """Report that the wave goes on without this client."""
        self.say(
            "late", f"round {late.round + 1}: too slow, the round goes on without this client", round=late.round + 1
        )

    def done(self, done: Done) -> None:
        """Report the result of a wave."""
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
        """Report something that a person should know."""
        self.say("warning", f"warning: {text}", level=Level.WARNING, why=text)

    def lost(self, why: str) -> None:
        """Report that the stream broke."""
        self.progress.looking(self._server)
        self.say("lost", f"lost the server ({why}); trying again", why=why)

    def forgotten(self) -> None:
        """Report that the server no longer knows this session."""
        self.say("forgotten", "the server no longer knows this session; joining again")

    def stop(self) -> None:
        """Stop the reports of progress, and leave the terminal as it was."""
        self._beat.stop()

    def ended(self, bye: Bye) -> None:
        """Report that the run is over for this client."""
        self.say("ended", f"over: {bye.reason}", reason=bye.reason, finished=bye.finished)


class ClientBar(ClientLines):
    """Draws a progress bar for the round under way, and prints lines above it."""

    _is_bar = True

    def __init__(self, *, level: Level = Level.INFO) -> None:
        super().__init__(level=level)
        self._console = Console(highlight=False)
        self._bar = make_bar(self.progress.wire, self._console)
        self._task = self._bar.add_task("waiting", total=None, loss="")

    def _print(self, text: str) -> None:
        self._console.print(Text(text), soft_wrap=True)

    def start(self) -> None:
        """Do nothing: the bar shows the progress."""

    def begin(self, begin: Begin) -> None:
        """Draw a new bar, which counts samples."""
        super().begin(begin)
        self._bar.start()
        about = f"round {begin.round + 1}/{begin.rounds} {'evaluating' if begin.evaluate else 'training'}"
        self._bar.reset(self._task, description=about, total=self.progress.expected, loss="")

    def batch(self, samples: int) -> None:
        """Move the bar by one batch."""
        super().batch(samples)
        self._bar.update(self._task, completed=self.progress.samples)

    def step(self, reply: Gradient) -> None:
        """Show the mean loss so far."""
        super().step(reply)
        if self.progress.begun is not None and not self.progress.begun.evaluate:
            self._bar.update(self._task, loss=f"loss {self.progress.loss:.4f}")

    def ended(self, bye: Bye) -> None:
        """Remove the bar and report that the run is over."""
        self._bar.stop()
        super().ended(bye)

    def stop(self) -> None:
        """Remove the bar."""
        super().stop()
        self._bar.stop()


def make_client_console(*, as_json: bool, level: Level = Level.INFO) -> ClientLines:
    """Return a bar on a terminal, else lines."""
    if wants_bar(level, as_json=as_json):
        return ClientBar(level=level)
    return ClientLines(as_json=as_json, level=level)
