"""Asks a server that answers after a run: the lower segment and the codec run here, the head there. One thread, no event loop.

Streams may break: what was not answered is asked again on a new one.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from sl_client.device.limits import DeviceLimits, device_for
from sl_client.inference.lower_cache import Lowers, own_lower, shared_lower
from sl_client.training.runner import Interrupted
from sl_client.transport.access import PLAINTEXT, Access
from sl_client.transport.stream import ClientStream, GrpcCarrier, StreamBroken, no_of
from sl_client.transport.tries import Tries
from sl_common import __version__
from sl_common.codec import Link
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, Refused, WireError
from sl_common.holdings import Inputs
from sl_common.messages.inference import Fetch, InferenceReply, InferenceRequest, Lower, Offer, Query, Scores
from sl_common.network.builds import build_difference, builds_of, is_release
from sl_common.network.network import Network, trained
from sl_common.tensors import StateDict
from sl_common.wire import SLOW_S, Endpoint, Frame, Hello, Refusal, Timing, read_answer

LONGEST_QUERY_RETRY_S = 2.0  # between two looks for a server
_FIRST_LIMIT = 1 << 20  # bytes of a message body before the run is known


@dataclass(kw_only=True, slots=True, eq=False)
class _Question:
    """A batch on its way, and when what happened to it."""

    z: Tensor  # (B, *cut)
    began: float
    forward_s: float
    encode_s: float = 0.0
    sent: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """What the network says of one batch."""

    scores: Tensor  # (B, classes), before the softmax
    seconds: float  # from the samples to the scores


class Predictor:
    """One client's questions to one server. A context manager; `open` it first."""

    def __init__(
        self,
        server: str,
        *,
        access: Access = PLAINTEXT,
        name: str = "",
        shard: int | None = None,
        shards: int | None = None,
        allowed: Collection[str] | None = (),
        lower: Path | None = None,
        cache: Path | None = None,
        retry_s: float = 10.0,
        warn: Callable[[str], None] = lambda _text: None,
        device: str | None = None,
        connect: Callable[[str], ClientStream] | None = None,
    ) -> None:
        """`shard`: whose head, where clients had their own. `lower`: a file, in place of the server's; `cache`: a folder for those.

        `device`: where to compute it, by default as the run says.
        """
        self._owners_device = device
        self.device = "cpu"  # once the run is known
        self._server = server
        self._hello = Hello(life=secrets.token_bytes(16), client=name, shard=shard, shards=shards, software=__version__)
        self._allowed, self._lower_file = allowed, lower
        self._lowers = None if cache is None else Lowers(cache)
        self._tries, self._warn = Tries(server, retry_s, LONGEST_QUERY_RETRY_S), warn
        self._connect = connect or partial(GrpcCarrier, access=access, call="Infer")
        self._carrier: ClientStream | None = None
        self._slow = False  # the link was seen to be
        self._spoke = 0.0  # when one of the two last said something
        self._words: deque[tuple[InferenceReply, float]] = deque()  # heard while something was still going out
        self._endpoint: Endpoint
        self._stop = threading.Event()
        self._offer: Offer | None = None
        self._lower: nn.Module
        self._config: RunConfig
        self._limit_bytes = 0
        self._under_way: deque[_Question] = deque()  # in the order of their numbers, the last of which is `_asked` - 1
        self._asked = 0
        self._timing: Timing | None = None  # of the last answer, for the next question to tell
        self.bytes_up = self.bytes_down = 0  # serialized gRPC messages with their prefixes, after the greeting

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> RunConfig:
        """Reach the server and have the lower segment ready: the run that answers.

        Raises PeerLost, Refused, WireError, Interrupted, or ConfigError if this device cannot take part.
        """
        self._reach()
        return self._config

    @property
    def inputs(self) -> Inputs | None:
        """What the run was trained on, as far as its server says."""
        return None if self._offer is None else self._offer.inputs

    @property
    def trained_on_floats(self) -> bool:
        """The run is known to have been trained on floating point numbers, which normalisation does not scale."""
        return self.inputs is not None and self.inputs.dtype != "uint8"

    def close(self) -> None:
        """End the stream."""
        if self._carrier is not None:
            self._carrier.close()
            self._carrier = None

    def interrupt(self) -> None:
        """From another thread: whatever waits raises Interrupted."""
        self._stop.set()
        carrier = self._carrier
        if carrier is not None:
            carrier.cancel()

    def ask(self, batches: Iterable[Tensor], window: int | None = None) -> Iterator[Prediction]:
        """Answers to normalised batches x (B, *input), B at most the run's batch size, in their order.

        `window` of them may be under way, by default and at most as many as the run allows. Raises as `open` does.
        """
        window = min(window or self._config.client.window, self._config.client.window)
        for x in batches:
            while len(self._under_way) >= window:
                yield self._hear()
            self._ask(x)
        while self._under_way:
            yield self._hear()

    # --- one question

    def _ask(self, x: Tensor) -> None:
        began = time.perf_counter()
        with torch.inference_mode():
            z = self._lower(x.to(self.device)).cpu()
        question = _Question(z=z, began=began, forward_s=time.perf_counter() - began)
        self._under_way.append(question)
        self._send_question(question)

    def _send_question(self, question: _Question) -> None:
        before = time.perf_counter()
        timing, self._timing = self._timing, None
        self._say(Query(step=self._asked, z=question.z), timing)
        question.sent = time.perf_counter()
        question.encode_s = question.sent - before
        self._asked += 1

    def _hear(self) -> Prediction:
        while True:
            try:
                message, heard = self._receive()
                break
            except StreamBroken as error:
                self._warn(f"lost the server ({error}); asking again")
                self._stop.wait(self._tries.fruitless(str(error)))
                self._reach()
        now = time.perf_counter()
        self._tries.went_well()
        number = self._asked - len(self._under_way)
        question = self._under_way.popleft()
        if not isinstance(message, Scores) or message.step != number:
            raise WireError(f"the server answered query {number} with {type(message).__name__}")
        wanted = (len(question.z), self._config.classes)
        if tuple(message.scores.shape) != wanted or not message.scores.is_floating_point():
            raise WireError(
                f"scores are {message.scores.dtype} {tuple(message.scores.shape)}, expected floating point numbers {wanted}"
            )
        # -Inf is what a head says of a class that it rules out.
        if not bool(torch.isfinite(message.scores.amax(dim=1)).all()):
            raise WireError(f"scores of query {number} hold NaN or Inf")
        self._timing = Timing(
            step=number,
            forward=question.forward_s,
            encode=question.encode_s,
            round_trip=heard - question.sent,
            decode=now - heard,
            backward=0.0,
        )
        return Prediction(scores=message.scores, seconds=now - question.began)

    def _say(self, message: InferenceRequest, timing: Timing | None = None) -> None:
        assert self._carrier is not None, "open it first"
        for frame in self._endpoint.pack(message, timing=timing):
            self._send(frame)
        self._spoke = time.perf_counter()
        with contextlib.suppress(StreamBroken):  # whoever hears next is told
            while self._endpoint.holds_frames:
                self._words.append(self._next())
                self._endpoint.check_waiting(len(self._words))

    def _send(self, frame: Frame) -> None:
        assert self._carrier is not None, "open it first"
        self.bytes_up += sum(nbytes for _, nbytes in frame.tally)
        self._carrier.send(frame)

    def _receive(self) -> tuple[InferenceReply, float]:
        """The next message, and when its last frame came."""
        return self._words.popleft() if self._words else self._next()

    def _next(self) -> tuple[InferenceReply, float]:
        assert self._carrier is not None, "open it first"
        while True:
            self._heed_stop()
            try:
                data = self._carrier.receive()
            except StreamBroken:
                self._slow = time.perf_counter() - self._spoke > SLOW_S or self._endpoint.sends_small_frames
                raise
            heard = self._spoke = time.perf_counter()
            try:
                received = self._endpoint.feed(data)
                self._carrier.check(self._endpoint.acknowledged)
            except Refused as error:  # who was idle for too long asks on another stream
                raise no_of(error.code, error.reason) from None
            self.bytes_down += sum(nbytes for _, nbytes in received.tally)
            for frame in self._endpoint.due(heard):
                self._send(frame)
            if received.message is not None:
                return received.message, heard  # type: ignore[return-value]

    # --- streams

    def _reach(self) -> None:
        """A stream whose server was understood, with all that is not answered asked on it. Raises PeerLost in the end."""
        self._tries.begin()
        was_slow = self._slow
        while True:
            self._heed_stop()
            self.close()
            try:
                self._carrier = self._connect(self._server)
                self._greet(self._carrier)
                for question in self._under_way:
                    self._send_question(question)
                return
            except StreamBroken as error:
                self._heed_stop()
                if self._slow and not was_slow:  # the server was there; what it sent may come in small frames
                    was_slow = True
                    self._tries.went_well()
                self._stop.wait(self._tries.failed(str(error)))

    def _greet(self, carrier: ClientStream) -> None:
        first, none = _FIRST_LIMIT, 0
        self._endpoint = Endpoint("client", link=Link(), limit_bytes=first, limit_tensors=none, call="infer")
        self._endpoint.resend(0, slow=self._slow)
        self._asked, self._timing = 0, None
        self._words.clear()
        carrier.send(replace(self._hello, slow=self._slow).to_frame())
        answer = read_answer(carrier.receive())
        self._spoke = time.perf_counter()
        if isinstance(answer, Refusal):
            raise no_of(answer.code, answer.reason)
        answer.check_version()
        offer, _ = self._receive()
        if not isinstance(offer, Offer):
            raise WireError(f"the server offers nothing, but says {type(offer).__name__}")
        if self._offer is None:
            self._build(offer)
        elif offer == self._offer:
            self._agree()
        else:
            raise WireError("the server came back with another network: ask anew")

    def _agree(self) -> None:
        draw = self._config.draw_of(self._hello.shard or 0)
        window = self._config.client.window
        self._endpoint.agree(self._config.infer_codec, self._limit_bytes, draw, window=window)

    def _build(self, offer: Offer) -> None:
        """The lower segment of the first offer; the head's blocks are dropped again."""
        self._config = RunConfig.from_json(offer.config)
        torch.set_num_threads(self._config.run.threads)
        if len(offer.lower_sha256) not in (0, 32):
            raise WireError(f"the server offers a lower segment by a digest of {len(offer.lower_sha256)} bytes, not 32")
        self.device = device_for(self._config, self._owners_device, self._warn)
        limits = DeviceLimits()
        limits.check_asking(self._config)
        fits = partial(limits.check_auxiliary, self._config)
        network = Network.build(self._config, self._allowed, parts=("lower",), fits=fits)
        self._limit_bytes = network.limit_bytes
        self._agree()
        self._compare(offer, network)
        lower = trained(network.lower, self._weights(network, offer.lower_sha256), "the lower segment")
        self._lower = lower.to(self.device)
        self._offer = offer

    def _compare(self, offer: Offer, network: Network) -> None:
        """Raise ConfigError where our code builds another lower segment than the server's: its weights would mean something else."""
        if offer.build is None:
            return
        (ours,) = builds_of(self._config, network, ("lower",), contextlib.nullcontext())
        same_torch = is_release(offer.torch, torch.__version__)
        found = build_difference(ours, offer.build, same_torch=same_torch, dtype=network.cut_dtype)
        if not found:
            return
        name, accepted = self._config.model.name, self._config.model.differs == "accept"
        text = f"model.name = {name!r}: the lower segment that this device builds is not the server's: {found}"
        if not accepted:
            raise ConfigError(f"{text}; use one file of code everywhere")
        self._warn(f"{text}; taken all the same: model.differs = 'accept'")

    def _weights(self, network: Network, sha256: bytes) -> StateDict:
        if self._lower_file is not None:
            return own_lower(self._lower_file, network, sha256, self._warn)
        return shared_lower(sha256, self._lowers, self._fetch, self._warn)

    def _fetch(self) -> StateDict:
        self._say(Fetch())
        message, _ = self._receive()
        if not isinstance(message, Lower) or message.weights.keys() != {"lower"}:
            raise WireError(f"the server sent no lower segment, but {type(message).__name__}")
        return message.weights["lower"]

    def _heed_stop(self) -> None:
        if self._stop.is_set():
            raise Interrupted
