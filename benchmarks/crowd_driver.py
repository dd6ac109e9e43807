"""Many light clients in one process: real endpoints, flows and streams on one event loop; only the processes are missing.

python -m benchmarks.crowd_driver --address 127.0.0.1:PORT --config RUN.toml --clients N; prints {"latency": {"p50": s, …}, …} as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path

import grpc
import torch

from sl_client.training.seat import take_seat
from sl_common.client.flow import Flow
from sl_common.client.program import participate
from sl_common.client.seat import Seat
from sl_common.codec import Link
from sl_common.config.run_config import RunConfig
from sl_common.messages.training import Alive, Gradient, Smashed, ToClient, ToServer, Welcome
from sl_common.wire import Endpoint, Greeting, Hello, read_answer

METHOD = "/sl.v1.SplitLearning/Train"
STREAMS = 64  # of one connection


class Driver:
    """One client."""

    def __init__(self, config: RunConfig, shard: int) -> None:
        self._config, self._shard = config, shard
        welcome = Welcome(config=config.to_json(), client=f"c{shard}", shard=shard, shards=config.shards)
        self._seat = take_seat(welcome, data=None, allowed=None)
        self._flow = Flow(participate(self._sit))
        self._endpoint = Endpoint("client", link=Link(), limit_bytes=1 << 20)
        self._sent: dict[int, float] = {}
        self.latencies: list[float] = []

    def _sit(self, _welcome: Welcome) -> Seat:
        self._endpoint.agree(self._config.codec, self._seat.limit_bytes, self._config.draw_of(self._shard))
        return self._seat

    async def run(self, channel: grpc.aio.Channel) -> None:
        """From Hello to Bye."""
        call = channel.stream_stream(METHOD)()
        await call.write(Hello(life=self._shard.to_bytes(16, "big"), shard=self._shard).to_frame())
        assert isinstance(read_answer(await call.read()), Greeting)
        while True:
            for message in self._flow.run():
                for data in self._said(message):
                    await call.write(data)
            if self._flow.ended is not None:
                break
            received = self._endpoint.feed(await call.read())
            if received.message is not None:
                self._hear(received.message)  # type: ignore[arg-type]
        last = self._endpoint.acknowledgement(at_once=True)
        assert last is not None
        await call.write(last.data)
        await call.done_writing()

    def _said(self, message: ToServer) -> list[bytes]:
        if isinstance(message, Alive):
            return []
        if isinstance(message, Smashed) and message.train:
            self._sent[message.step] = time.perf_counter()
        return [frame.data for frame in self._endpoint.pack(message)]

    def _hear(self, message: ToClient) -> None:
        if isinstance(message, Gradient) and message.step in self._sent:
            self.latencies.append(time.perf_counter() - self._sent.pop(message.step))
        self._flow.deliver(message)


async def crowd(config: RunConfig, address: str, clients: int) -> dict[str, float]:
    """All of them, to the end: quantiles of a step's latency in seconds, from sending the batch to having its gradient."""
    drivers = [Driver(config, shard) for shard in range(clients)]
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1))
    channels = [grpc.aio.insecure_channel(address, options=options) for _ in range(-(-clients // STREAMS))]
    await asyncio.gather(*(driver.run(channels[n // STREAMS]) for n, driver in enumerate(drivers)))
    for channel in channels:
        await channel.close()
    skip = config.client.wave.steps or 1  # of the first round, which warms up
    found = torch.tensor([s for driver in drivers for s in driver.latencies[skip:]], dtype=torch.float64)
    quantiles = torch.quantile(
        found[:: max(1, len(found) // 1_000_000)], torch.tensor([0.5, 0.99], dtype=torch.float64)
    )
    return {"p50": quantiles[0].item(), "p99": quantiles[1].item(), "steps": len(found)}


def main() -> None:
    """Run the crowd; one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--clients", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = RunConfig.from_toml(args.config.read_text(), [f"run.clients={args.clients}"])
    print(json.dumps({"latency": asyncio.run(crowd(config, args.address, args.clients))}), flush=True)


if __name__ == "__main__":
    main()
