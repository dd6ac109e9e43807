"""The optional event log (`--record`): every event that the coordinator handled, in order, with digests of its
results.

file = b"SLEVENTS", version, length of the preface, its CRC-32 | preface: JSON | records, as in sl_common.wire.eventlog
"""

from __future__ import annotations

import json
import platform
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sl_common import __version__
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.messages.events import Logged
from sl_common.wire import eventlog
from sl_common.wire.eventlog import LOG_VERSION, LogReader
from sl_server.storage.append_only import GrowingFile

EVENT_LOG = "events.log"  # in a run directory
MAX_PREFACE = 4 << 20  # bytes
_MAGIC = b"SLEVENTS"
_START = struct.Struct("<8sIII")
GROWN = 1_000_000_000  # bytes of an event log between two messages about its size


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """The run and the machine that a log is from. Results agree to the last bit only between machines of one kind."""

    config: str  # JSON
    run: str = ""  # the run's identifier, made at random when it began
    cutlayer: str = __version__
    torch: str = torch.__version__
    machine: str = platform.machine()
    device: str = "cpu"

    @property
    def kind(self) -> str:
        """The machine, device and program versions, as text for people."""
        return f"cutlayer {self.cutlayer}, torch {self.torch}, {self.machine}, device {self.device}"


class EventLog:
    """Appends events to a file as they are handled. A log with a gap cannot be replayed, so it ends before the gap."""

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        say: Callable[[str], None] = lambda _text: None,
        *,
        run: str = "",
        device: str = "cpu",
    ) -> None:
        """Begin a log. `say` is called with a message at each gigabyte, and when the log ends early. Raises
        ConfigError."""
        try:
            self._file = GrowingFile(path)
        except OSError as error:
            raise ConfigError(f"--record: {path}: {error.strerror or error}") from error
        self._say = say
        self._announced = 0  # gigabytes that a message was sent about
        self.complete = True
        preface = json.dumps(asdict(Recorded(config=config.to_json(), run=run, device=device))).encode()
        self._file.append(_START.pack(_MAGIC, LOG_VERSION, len(preface), zlib.crc32(preface)) + preface)

    def append(self, entry: tuple[str, Logged]) -> None:
        """Append one event of one client."""
        if not self.complete:
            return
        self._file.append(eventlog.dump(*entry))
        if self._file.lost:
            self.complete = False
            self._say(f"{self._file.path} ends here: the disk took none of the last {self._file.waiting:,} bytes")
        if self._file.length >= (self._announced + 1) * GROWN:
            self._announced = self._file.length // GROWN
            self._say(f"{self._file.path} has {self._file.length / 1e9:.1f} GB: --record keeps every activation")

    def sync(self) -> None:
        """Make everything appended so far durable. Raises OSError."""
        self._file.sync()

    def close(self) -> None:
        """Write what is still in memory, and close the file."""
        self._file.close()


@contextmanager
def opened_log(path: Path) -> Iterator[tuple[Recorded, LogReader]]:
    """Open a log for reading, checking its version before anything else. Raises ConfigError."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    with file:
        start = file.read(_START.size)
        if start[: len(_MAGIC)] != _MAGIC:
            older = start[4:5] == b"{"  # version 1 began with the length of the configuration and the configuration
            why = (
                f"an event log of version 1, this program reads version {LOG_VERSION}" if older else "not an event log"
            )
            raise ConfigError(f"{path}: {why}")
        if len(start) < _START.size:
            raise ConfigError(f"{path}: cut short within its first {_START.size} bytes")
        _, version, length, checksum = _START.unpack(start)
        if version != LOG_VERSION:
            raise ConfigError(f"{path}: an event log of version {version}, this program reads version {LOG_VERSION}")
        preface = file.read(min(length, MAX_PREFACE))
        if len(preface) != length or zlib.crc32(preface) != checksum:
            raise ConfigError(f"{path}: damaged: its first {_START.size + length} bytes do not fit their checksum")
        try:
            recorded = Recorded(**json.loads(preface))
        except (ValueError, TypeError, RecursionError) as error:
            raise ConfigError(f"{path}: a preface that makes no sense: {str(error)[:200]}") from error
        if wrong := sorted(name for name, value in asdict(recorded).items() if not isinstance(value, str)):
            raise ConfigError(f"{path}: a preface that makes no sense: {wrong[0]} is no text")
        size = path.stat().st_size - file.tell()
        yield recorded, LogReader(file.read, size)
