"""`sl-client doctor`: what a person needs to know before a device takes part."""

from __future__ import annotations

import json
import os
import platform
import queue
import statistics
import sys
import time
from collections.abc import Iterator

import grpc
import numpy as np
import torch

from sl_client.carrier import OPTIONS
from sl_common import __version__
from sl_common.errors import PeerLost, Refused
from sl_common.wire import WIRE_VERSION, probe

METHOD = "/sl.v1.SplitLearning/Probe"
_TIMEOUT_S = 15.0
_PINGS = 16
_BULK = 16


def examine(server: str, *, as_json: bool) -> None:
    """Print what is found. Raises PeerLost if the server does not answer, Refused if it speaks another wire version."""
    found: dict[str, object] = {
        "cutlayer": __version__,
        "wire_version": WIRE_VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "server": server,
        "tls": False,
    }
    with grpc.insecure_channel(server, options=OPTIONS) as channel:
        try:
            _measure(channel, found)
        except grpc.RpcError as error:
            raise PeerLost(_why(server, error)) from None
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        for key, value in found.items():
            sys.stdout.write(f"{key:>18}  {value}\n")
    if found["server_wire_version"] != WIRE_VERSION:
        raise Refused(
            "version", f"the server speaks wire version {found['server_wire_version']}, this client {WIRE_VERSION}"
        )


def _why(server: str, error: grpc.RpcError) -> str:
    """In words: nobody there, or somebody else."""
    code, details = error.code(), error.details()
    if code == grpc.StatusCode.UNAVAILABLE:
        return f"no server at {server}: {details}"
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer from {server} within {_TIMEOUT_S:g} s"
    return f"{server} answers, but not as a Cutlayer server: {code.name.lower()}: {details}"


def _measure(channel: grpc.Channel, found: dict[str, object]) -> None:
    trips = []
    for pong, seconds in _pings(channel, [(64, 64)] * _PINGS):
        trips.append(seconds)
        found["server_version"], found["server_wire_version"] = pong.software, pong.version
    found["round_trip_ms"] = round(1e3 * statistics.median(trips), 3)
    for name, sizes in (("up", (probe.MAX_PAYLOAD, 0)), ("down", (0, probe.MAX_PAYLOAD))):
        seconds = sum(s for _, s in _pings(channel, [sizes] * _BULK))
        found[f"{name}_mbit_per_s"] = round(8e-6 * _BULK * probe.MAX_PAYLOAD / seconds, 1)


def _pings(channel: grpc.Channel, sizes: list[tuple[int, int]]) -> Iterator[tuple[probe.Pong, float]]:
    """One ping at a time on one stream: the answer and the seconds it took."""
    asks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    answers = channel.stream_stream(METHOD)(iter(asks.get, None), timeout=_TIMEOUT_S)
    for nbytes, reply_bytes in sizes:
        data = probe.ping(nbytes, reply_bytes)
        started = time.perf_counter()
        asks.put(data)
        pong = probe.read(next(answers))
        yield pong, time.perf_counter() - started
    asks.put(None)
