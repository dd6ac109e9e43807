"""A server process that answers after a run: the inference thread, gRPC on asyncio, the metrics' address and signals."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Iterator

from sl_common.exits import HAND_OVER_S
from sl_common.host.descriptors import Shortage
from sl_common.host.progress import Beat, size
from sl_common.host.signals import hang_up
from sl_server.console.show import ServerConsole
from sl_server.inference.loop import Inference
from sl_server.inference.metrics import InferMetrics
from sl_server.inference.microbatch import MicroBatching
from sl_server.security import handshakes
from sl_server.security.credentials import Credentials
from sl_server.security.expiry import Expiry, expose
from sl_server.storage.trained import TrainedRun
from sl_server.telemetry.ledger import Ledger
from sl_server.training import descriptors
from sl_server.training.process import say_room
from sl_server.transport import service


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
    """Answer until a signal ends it: why it failed (None if it did not), and whether the signal was SIGINT.

    `device`: where `trained` is, and what was asked for.
    """
    sys.setswitchinterval(HAND_OVER_S)
    return asyncio.run(_serve(trained, batching, listen, door, metrics, show, ledger, device))


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
    loop, over, metrics = asyncio.get_running_loop(), asyncio.Event(), InferMetrics(ledger)
    inference = Inference(
        trained,
        batching,
        ledger=ledger,
        metrics=metrics,
        warn=show.warn,
        on_end=lambda: _ring(loop, over),
    )
    say_room(show, descriptors.descriptors_for_inference(trained.config))
    server = None
    with contextlib.ExitStack() as stack:
        stack.callback(metrics.scrapes.close)
        shortage = Shortage(show.warn)
        stack.enter_context(handshakes.heard(inference.refused, shortage.met))
        expose(metrics.registry, door.certificates)
        for one in (descriptors.watch_descriptors(shortage), Expiry(door.certificates, show.warn).watch()):
            stack.callback(asyncio.create_task(one).cancel)
        try:
            interrupted = _on_signals(loop, inference, show)  # before anybody can know of this process
            server, port = await service.start(inference, listen, door, "Infer")
            _announce(show, f"{listen.rpartition(':')[0]}:{port}", door, trained)
            show.device(*device)
            if metrics_at is not None:
                at = metrics.scrapes.serve(*metrics_at, inference.health)
                show.say("metrics", f"metrics at http://{metrics_at[0]}:{at}/metrics", port=at)
            inference.start()
            stack.enter_context(_beating(show, metrics, ledger))
            await over.wait()
            await server.stop(grace=2.0)  # the last answers are on their way
            _say_answered(show, "summary", metrics, ledger)
            return inference.failure, interrupted.is_set()
        finally:
            if server is not None:
                await server.stop(grace=0)


def _announce(show: ServerConsole, address: str, door: Credentials, trained: TrainedRun) -> None:
    config, sha256 = trained.config, trained.lower_sha256.hex()
    lower = "its clients' own" if not sha256 else f"sent to clients that have it not yet (sha256 {sha256[:16]}…)"
    show.say(
        "listening",
        f"listening on {address} ({door.says}); run {config.run.name!r}: model {config.model.name} cut at {config.model.cut}, "
        f"{len(trained.heads)} head(s); lower segment: {lower}",
        address=address,
        tls=door.certificates is not None,
        run=config.run.name,
        heads=len(trained.heads),
        lower_sha256=sha256,
    )
    door.attach(show.warn)


def _ring(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    loop.call_soon_threadsafe(event.set)


def _on_signals(loop: asyncio.AbstractEventLoop, inference: Inference, show: ServerConsole) -> asyncio.Event:
    """Any of these answers what is waiting and ends; a second one leaves at once."""
    interrupted, told = asyncio.Event(), asyncio.Event()

    def stop(name: str) -> None:
        if told.is_set():
            raise SystemExit(130)
        told.set()
        if name == "SIGINT":
            interrupted.set()
        show.warn(f"{name}: answering what is waiting, then stopping; once more to leave at once")
        inference.drain()

    for number in (signal.SIGINT, signal.SIGTERM, *hang_up()):
        loop.add_signal_handler(number, stop, number.name)
    return interrupted


@contextlib.contextmanager
def _beating(show: ServerConsole, metrics: InferMetrics, ledger: Ledger) -> Iterator[None]:
    """Say every few seconds how much was answered, while there is something new to say."""
    said = [0.0]

    def say() -> None:
        answered = metrics.registry.get_sample_value("sl_infer_requests_total") or 0.0
        if answered != said[0]:
            said[0] = answered
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
