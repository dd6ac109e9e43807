"""The server process that answers after a run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from sl_common.exits import INTERRUPTED
from sl_common.host.progress import Beat, size
from sl_server.console.show import ServerConsole
from sl_server.inference.loop import Inference
from sl_server.inference.metrics import InferMetrics
from sl_server.inference.microbatch import MicroBatching
from sl_server.process.descriptors import claim_descriptors, descriptors_for_inference
from sl_server.process.harness import Harness, on_signals, run_process
from sl_server.security.credentials import Credentials
from sl_server.storage.trained import TrainedRun
from sl_server.telemetry.ledger import Ledger


def serve_trained(
    trained: TrainedRun,
    batching: MicroBatching,
    *,
    listen: str,
    door: Credentials,
    metrics: tuple[str, int] | None,
    show: ServerConsole,
    ledger: Ledger,
    device: tuple[str, str] = ("cpu", "cpu"),
) -> tuple[str | None, bool]:
    """Answer until a signal ends the process. Return why it failed (None if not), and whether the signal was SIGINT.

    `metrics` is the address of the metrics, if they are wanted; `device` is where `trained` is, and what was asked for.
    """
    return run_process(_serve(trained, batching, listen, door, metrics, show, ledger, device))


async def _serve(
    trained: TrainedRun,
    batching: MicroBatching,
    listen: str,
    door: Credentials,
    metrics_at: tuple[str, int] | None,
    show: ServerConsole,
    ledger: Ledger,
    device: tuple[str, str],
) -> tuple[str | None, bool]:
    metrics = InferMetrics(ledger)
    harness = Harness(show, door, metrics)
    inference = Inference(trained, batching, ledger=ledger, metrics=metrics, warn=show.warn, on_end=harness.end)
    claim_descriptors(show, descriptors_for_inference(trained.config))
    async with harness:
        signals = _Signals(inference, show.warn)
        on_signals(signals.handle)  # before anybody can know of this process
        address = await harness.listen(inference.inbox, listen, "Infer")
        _announce(show, address, door, trained)
        show.device(*device)
        harness.serve_metrics(metrics_at, inference.health)
        inference.start()
        with _progress(show, metrics, ledger):
            await harness.until_over()
            _say_answered(show, "summary", metrics, ledger)
        return inference.failure, signals.interrupted


class _Signals:
    """Any signal answers what is waiting and ends; a second one leaves at once."""

    def __init__(self, inference: Inference, warn: Callable[[str], None]) -> None:
        self._inference, self._warn = inference, warn
        self._ending = False
        self.interrupted = False  # by SIGINT

    def handle(self, name: str) -> None:
        """Act on a signal."""
        if self._ending:
            raise SystemExit(INTERRUPTED)
        self._ending = True
        self.interrupted = name == "SIGINT"
        self._warn(f"{name}: answering what is waiting, then stopping; once more to leave at once")
        self._inference.drain()


def _announce(show: ServerConsole, address: str, door: Credentials, trained: TrainedRun) -> None:
    config, sha256 = trained.config, trained.lower_sha256.hex()
    lower = "its clients' own" if not sha256 else f"sent to clients that have it not yet (sha256 {sha256[:16]}…)"
    show.say(
        "listening",
        f"listening on {address} ({door.says}); run {config.run.name!r}: model {config.model.name} "
        f"cut at {config.model.cut}, {len(trained.heads)} head(s); lower segment: {lower}",
        address=address,
        tls=door.certificates is not None,
        run=config.run.name,
        heads=len(trained.heads),
        lower_sha256=sha256,
    )
    door.attach(show.warn)


@contextlib.contextmanager
def _progress(show: ServerConsole, metrics: InferMetrics, ledger: Ledger) -> Iterator[None]:
    """Say every few seconds how much was answered, if that has changed."""
    last = 0.0

    def say() -> None:
        nonlocal last
        answered = metrics.registry.get_sample_value("sl_infer_requests_total") or 0.0
        if answered != last:
            last = answered
            _say_answered(show, "progress", metrics, ledger)

    beat = Beat(say)
    beat.start()
    try:
        yield
    finally:
        beat.stop()


def _say_answered(show: ServerConsole, event: str, metrics: InferMetrics, ledger: Ledger) -> None:
    value = metrics.registry.get_sample_value
    requests = int(value("sl_infer_requests_total") or 0)
    samples = int(value("sl_infer_samples_total") or 0)
    up, down = ledger.total("up"), ledger.total("down")
    show.say(
        event,
        f"answered {requests:,} queries of {samples:,} samples; {size(up)} up, {size(down)} down",
        requests=requests,
        samples=samples,
        bytes=ledger.by_direction("wire"),
    )
