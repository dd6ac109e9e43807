"""Lower segments in files: a client's own, and a cache of servers' by digest, so that each is sent once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save

from sl_common.errors import ConfigError, WireError
from sl_common.host.files import make_folder, write_atomically
from sl_common.network.network import Network, trained
from sl_common.tensors import StateDict, state_digest

KEPT_LOWERS = 16  # files in the cache: a server could offer another one each time


class LowerCache:
    """A folder of lower segments. A damaged file is fetched again.

    A file that cannot be written only causes a warning.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, sha256: bytes) -> StateDict | None:
        """Return the lower segment with this digest, if it is here and undamaged."""
        with contextlib.suppress(OSError, SafetensorError):
            path = self._path(sha256)
            state: StateDict = load_file(path)
            if state_digest(state) == sha256:
                with contextlib.suppress(OSError):  # a read-only folder keeps no order of use
                    path.touch()
                return state
        return None

    def keep(self, sha256: bytes, state: StateDict) -> str:
        """Write a lower segment, whole or not at all; return a warning if that failed, else an empty text."""
        try:
            make_folder(self._folder)
            write_atomically(self._path(sha256), save({name: tensor.contiguous() for name, tensor in state.items()}))
            self._forget_oldest()
        except OSError as error:
            return f"--cache {self._folder}: {error.strerror or error}; the lower segment is fetched again next time"
        return ""

    def _forget_oldest(self) -> None:
        """Remove all but those used last."""
        kept = sorted(self._folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        for path in kept[:-KEPT_LOWERS]:
            path.unlink(missing_ok=True)

    def _path(self, sha256: bytes) -> Path:
        return self._folder / f"{sha256.hex()}.safetensors"


def default_folder() -> Path:
    """Return the folder for a user's cache on Linux."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "cutlayer"


def load_own_lower(path: Path, network: Network, sha256: bytes, warn: Callable[[str], None]) -> StateDict:
    """Read a file of `sl-client run --save-lower`. `sha256`: digest of the shared one, if clients shared one.

    Raises ConfigError.
    """
    try:
        state: StateDict = load_file(path)
        trained(network.lower, state, "the lower segment")
    except (OSError, SafetensorError, WireError) as error:
        raise ConfigError(f"--lower {path}: {getattr(error, 'strerror', None) or error}") from error
    if sha256 and state_digest(state) != sha256:
        warn(f"--lower {path} is not the one that all clients of this run shared")
    return state


def load_shared_lower(
    sha256: bytes, cache: LowerCache | None, fetch: Callable[[], StateDict], warn: Callable[[str], None]
) -> StateDict:
    """Return the shared lower segment from the cache, else from the server.

    Raises ConfigError if clients had their own, WireError if the server sends another one than it offers.
    """
    if not sha256:
        raise ConfigError(
            "the clients of this run kept lower segments of their own, and the server has none: "
            "give --lower FILE (sl-client run --save-lower FILE wrote it)"
        )
    state = None if cache is None else cache.find(sha256)
    if state is not None:
        return state
    state = fetch()
    if state_digest(state) != sha256:
        raise WireError(f"the server offers a lower segment {sha256.hex()} and sends {state_digest(state).hex()}")
    warning = "" if cache is None else cache.keep(sha256, state)
    if warning:
        warn(warning)
    return state
