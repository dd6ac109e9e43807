"""`sl-client doctor`: checks a device and its way to a server before it takes part in a run."""

from __future__ import annotations

import json
import os
import platform
import queue
import statistics
import time
from collections.abc import Iterator

import grpc
import numpy as np
import torch

from sl_client.transport.access import Access
from sl_client.transport.stream import CHANNEL_OPTIONS
from sl_client.transport.tls import Tls, own_certificate
from sl_common import __version__
from sl_common.errors import CutlayerError, PeerLost, Refused, WireError
from sl_common.host.devices import described, pick_device
from sl_common.host.log import write_line
from sl_common.host.text import printable
from sl_common.wire import WIRE_VERSION, probe

METHOD = "/sl.v1.SplitLearning/Probe"
_TIMEOUT_S = 15.0
_PINGS = 16
_BULK = 16  # of the largest payload, to time a fast link
_FIRST_BYTES = 4 << 10  # of the first payload that is timed: 2 s at 16 kbit/s
_LONG_S = 0.2  # a payload that takes so long gives a good estimate


def examine(server: str, access: Access, *, as_json: bool) -> None:
    """Measure and print.

    Raises PeerLost if the server does not answer, Refused if it rejects this client or speaks another wire version.
    """
    found: dict[str, object] = {
        "cutlayer": __version__,
        "wire_version": WIRE_VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "device": described(pick_device("auto", "--device")),  # the choice of `run` without an option
        "server": server,
        "tls": access.tls is not None,
    }
    if access.proxy is not None:
        found["proxy"] = f"{access.proxy} of {access.proxy.variable}"
    if access.cautions:
        found["caution"] = " ".join(access.cautions)
    with access.channel(server, CHANNEL_OPTIONS) as channel:
        try:
            _measure(channel, access, found)
        except grpc.RpcError as error:
            raise _error_of(server, access, error) from None
    if as_json:
        write_line(json.dumps(found))
    else:
        for key, value in found.items():
            write_line(f"{key:>18}  {printable(value)}")
    if found["server_wire_version"] != WIRE_VERSION:
        raise Refused(
            "version", f"the server speaks wire version {found['server_wire_version']}, this client {WIRE_VERSION}"
        )


def _error_of(server: str, access: Access, error: grpc.RpcError) -> CutlayerError:
    """Return gRPC's error as ours: no server, a server that rejects this client, or another kind of server."""
    code, details = error.code(), error.details()
    if code == grpc.StatusCode.UNAUTHENTICATED:
        return Refused("identity", details)
    if code == grpc.StatusCode.UNAVAILABLE:
        return access.refusal(server) or PeerLost(f"no server at {server}: {details}")
    if code == grpc.StatusCode.DEADLINE_EXCEEDED:
        return PeerLost(f"no answer from {server} within {_TIMEOUT_S:g} s")
    return PeerLost(f"{server} answers, but not as a Cutlayer server: {code.name.lower()}: {details}")


def _certificates(server: str, tls: Tls) -> dict[str, object]:
    """Return the version of TLS, and the subject and the days left of each side's certificate."""
    found: dict[str, object] = {}
    seen = tls.look(server)
    if seen is not None:
        certificate, version = seen
        found |= {"tls_version": version, "server_subject": certificate.subject}
        found |= {"server_names": " ".join(certificate.names), "server_days_left": certificate.days_left}
    own = own_certificate(tls.cert, tls.key) if tls.cert and tls.key else None
    if own is not None:
        found |= {"client_subject": own.subject, "client_days_left": own.days_left}
    return found


def _measure(channel: grpc.Channel, access: Access, found: dict[str, object]) -> None:
    trips = []
    for pong, seconds in _pings(channel, access, [(64, 64)] * _PINGS):
        trips.append(seconds)
        found["server_version"], found["server_wire_version"] = pong.software, pong.version
    if access.tls is not None:
        found |= _certificates(str(found["server"]), access.tls)
    found["round_trip_ms"] = round(1e3 * statistics.median(trips), 3)
    for name, up in (("up", True), ("down", False)):
        mbit_per_s = 8e-6 * _bytes_per_s(channel, access, up=up)
        found[f"{name}_mbit_per_s"] = round(mbit_per_s, 1 if mbit_per_s >= 1 else 4)


def _bytes_per_s(channel: grpc.Channel, access: Access, *, up: bool) -> float:
    """Time payloads that grow until the time is long enough.

    On a slow link the server would not wait for the largest one.
    """
    nbytes, count, seconds = _FIRST_BYTES, 1, 0.0
    while True:
        sizes = (nbytes, 0) if up else (0, nbytes)
        seconds = sum(s for _, s in _pings(channel, access, [sizes] * count))
        if seconds >= _LONG_S or count > 1:
            return count * nbytes / seconds
        if nbytes == probe.MAX_PAYLOAD:
            count = _BULK
        nbytes = min(4 * nbytes, probe.MAX_PAYLOAD)


def _pings(channel: grpc.Channel, access: Access, sizes: list[tuple[int, int]]) -> Iterator[tuple[probe.Pong, float]]:
    """Send one ping at a time on one stream; yield each answer and the seconds that it took."""
    pings: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    answers = channel.stream_stream(METHOD)(iter(pings.get, None), timeout=_TIMEOUT_S, metadata=access.metadata)
    for nbytes, reply_bytes in sizes:
        data = probe.ping(nbytes, reply_bytes)
        started = time.perf_counter()
        pings.put(data)
        answer = next(answers, None)
        if answer is None:
            raise WireError("the server ended the probe before it had answered every ping")
        pong = probe.read_pong(answer)
        yield pong, time.perf_counter() - started
    pings.put(None)
