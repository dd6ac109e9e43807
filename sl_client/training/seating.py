"""Takes a seat after each Welcome, with this device's data and limits and the snapshots of earlier sessions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from sl_client.console.progress import CountedBatches
from sl_client.device.limits import NO_LIMITS, DeviceLimits, device_for
from sl_client.device.pages import drop_clean_pages
from sl_client.training.seat import take_seat
from sl_client.training.snapshots_on_disk import StateFolders
from sl_common.client.orders import check_welcome
from sl_common.client.seat import Seat
from sl_common.client.snapshots import Snapshots
from sl_common.config.run_config import RunConfig
from sl_common.errors import WireError
from sl_common.messages.training import Welcome
from sl_common.training.segment import SpanFactory
from sl_common.wire import Endpoint


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceOptions:
    """Choices of the device's owner for a training client."""

    data: Path | None = None  # folder of data sets
    allowed: Collection[str] | None = ()  # packages that the user's code may come from; None: any
    device: str | None = None  # where to compute; None: as the run says
    limits: DeviceLimits = NO_LIMITS


class SeatEvents(Protocol):
    """Calls about a client's seat."""

    def seated(self, welcome: Welcome, seat: Seat) -> None:
        """Report that the client has its seat in the run."""
        ...

    def batch(self, samples: int) -> None:
        """Count the samples of a batch that is done."""
        ...

    def warn(self, text: str) -> None:
        """Report something that a person should know."""
        ...


class Seating:
    """Takes seats for one client process, one for each session."""

    def __init__(self, options: DeviceOptions, folders: StateFolders, events: SeatEvents) -> None:
        self._options, self._folders, self._events = options, folders, events
        self.seat: Seat | None = None  # the last one

    def take(self, welcome: Welcome, name: str, endpoint: Endpoint, span: SpanFactory) -> Seat:
        """Build what a Welcome asks for, and set the endpoint to the run's codecs and limits.

        Raises WireError for a Welcome to another client than `name`, ConfigError or DataError if this device cannot
        take part.
        """
        if welcome.client != name:
            raise WireError(f"welcome is for {welcome.client!r}, this client is {name!r}")
        check_welcome(welcome)
        config, options = RunConfig.from_json(welcome.config), self._options
        options.limits.set_threads(config)
        drop_clean_pages()  # read by the start of this process
        seat = take_seat(
            welcome,
            data=options.data,
            allowed=options.allowed,
            span=span,
            snapshots=self._snapshots(welcome),
            limits=options.limits,
            sole=True,
            device=device_for(config, options.device, self._events.warn),
        )
        draw, window = config.draw_of(welcome.shard), config.client.window
        endpoint.agree(config.codec, seat.limit_bytes, draw, seat.residuals, window, limit_tensors=seat.limit_tensors)
        drop_clean_pages()  # read by building
        self.seat = replace(seat, data=CountedBatches(seat.data, self._events.batch))
        self._events.seated(welcome, self.seat)
        return self.seat

    def _snapshots(self, welcome: Welcome) -> Snapshots:
        """Return the snapshots of an earlier session in this run, from this process or from disk."""
        before = self.seat
        if before is None or before.snapshots.run != welcome.run or before.shard != welcome.shard:
            return self._folders.find(welcome.run, welcome.client, self._events.warn)
        return before.final_snapshots()
