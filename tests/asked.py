"""A real server that answers after a run, in a thread of the test's process, over real gRPC on loopback; and runs for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file

from sl_client.transport.stream import GrpcStream
from sl_common.codec import Link
from sl_common.config.run_config import RunConfig
from sl_common.errors import Refused
from sl_common.wire import Endpoint, Hello
from sl_common.wire.frame import CHUNK_BYTES
from sl_server.inference.loop import Inference
from sl_server.inference.metrics import InferMetrics
from sl_server.inference.microbatch import MicroBatching
from sl_server.security.credentials import Credentials
from sl_server.simulation.simulation import Simulation
from sl_server.storage.run_directory import RunDirectory
from sl_server.storage.trained import TrainedRun, read_trained_run
from sl_server.telemetry.ledger import Ledger
from sl_server.transport import server as grpc_server


def trained_in(out: Path, config: RunConfig) -> dict:
    """A simulated run's directory, its clients' lower segments beside it as `lower-SHARD.safetensors`; the summary."""
    ledger = Ledger()
    simulation = Simulation(config, count=ledger.count)
    directory = RunDirectory(out, config, ledger)
    for fact in simulation.run():
        directory.fact(fact, 0.0)
    for shard, seat in simulation.seats.items():
        save_file(seat.bank.get("lower").state(), out.parent / f"lower-{shard}.safetensors")
    return directory.finish(simulation.coordinator, 0.0)


class LiveAnswers:
    """Inference, service, metrics and ledger as `sl-server serve` puts them together, without signals."""

    def __init__(self, trained: TrainedRun, batching: MicroBatching) -> None:
        self.trained = trained
        self.ledger = Ledger()
        self.metrics = InferMetrics(self.ledger)
        self.warnings: list[str] = []
        self.over = threading.Event()
        self.inference = Inference(
            trained,
            batching,
            ledger=self.ledger,
            metrics=self.metrics,
            warn=self.warnings.append,
            on_end=self.over.set,
        )
        self.address = ""

    def sample(self, name: str, **labels: str) -> float:
        """A metric's value now."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


@contextmanager
def answering(
    trained: TrainedRun | Path,
    batching: MicroBatching | None = None,
    door: Credentials | None = None,
    listen: str = "127.0.0.1:0",
) -> Iterator[LiveAnswers]:
    """A live server; drained at the end whatever happened."""
    if isinstance(trained, Path):
        trained = read_trained_run(trained, lambda _text: None)
    live = LiveAnswers(trained, batching or MicroBatching())
    loop, started = asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        server, port = await grpc_server.start(live.inference.inbox, listen, door, "Infer")
        live.address = f"127.0.0.1:{port}"
        live.inference.start()
        started.set()
        while not live.over.is_set():
            await asyncio.sleep(0.02)
        await server.stop(grace=1.0)

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(20)
    try:
        yield live
    finally:
        live.inference.drain()
        thread.join(30)
        loop.close()
        assert not thread.is_alive()


class Stranger:
    """A client without manners: its own messages on a real stream."""

    def __init__(self, live: LiveAnswers, chunk_bytes: int = CHUNK_BYTES, **hello: object) -> None:
        limit_bytes = live.trained.network.limit_bytes
        self.endpoint = Endpoint("client", link=Link(), limit_bytes=limit_bytes, chunk_bytes=chunk_bytes, call="infer")
        self.carrier = GrpcStream(live.address, call="Infer")
        self.carrier.send(Hello(**({"life": bytes(16)} | hello)).to_frame())
        self.greeting = self.carrier.receive()

    def say(self, *messages: object) -> None:
        for message in messages:
            for frame in self.endpoint.pack(message):
                self.carrier.send(frame.data)

    def hear(self) -> object:
        while (received := self.endpoint.feed(self.carrier.receive())).message is None:
            pass
        return received.message

    def is_refused(self) -> Refused:
        try:
            while True:
                self.hear()
        except Refused as error:
            return error
        finally:
            self.carrier.close()
