"""Tokens of clients, kept as SHA-256 digests and compared in constant time. A token is neither kept nor logged."""

from __future__ import annotations

import hashlib
import hmac
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sl_common.errors import ConfigError
from sl_common.names import is_name, is_token
from sl_server.security.watched_files import Watched, caution, read_file

SHORT = 16  # characters; a shorter token can be guessed
SCHEME = "bearer "


@dataclass(frozen=True, kw_only=True, slots=True)
class _Kept:
    digests: Mapping[str, bytes]  # client -> SHA-256 of its token
    short: tuple[str, ...]  # clients whose token can be guessed


class Tokens:
    """A file of lines `id = "token"`, read again when it changes: removing a line locks its client out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._watched = Watched([path], lambda: _read(path))

    def attach(self, warn: Callable[[str], None]) -> None:
        """Set the function that receives warnings: of a file that others can read, or that can no longer be read."""
        self._watched.attach(warn)
        for text in caution("--tokens", self._path):
            warn(text)
        if self._watched.current.short:
            names = ", ".join(self._watched.current.short)
            warn(f"--tokens {self._path}: fewer than {SHORT} characters can be guessed ({names}); openssl rand -hex 32")

    @property
    def version(self) -> int:
        """A number that changes with the file."""
        return self._watched.version

    def renew(self) -> None:
        """Read the file again if it has changed."""
        self._watched.renew()

    def owner(self, authorization: str) -> tuple[str, ...]:
        """Return the client whose token is in a call's `authorization`: one name or none. Takes the same time for any
        token."""
        self._watched.renew()
        token = authorization[len(SCHEME) :].strip() if authorization[: len(SCHEME)].lower() == SCHEME else ""
        shown = _digest(token)
        return tuple(
            name for name, digest in self._watched.current.digests.items() if hmac.compare_digest(digest, shown)
        )


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def _read(path: Path) -> _Kept:
    try:
        lines = tomllib.loads(read_file("--tokens", path).decode())
    except (ValueError, RecursionError) as error:  # the error's text gives the place, and none of the content
        raise ConfigError(f'--tokens {path}: write a line id = "token" for each client ({error})') from error
    if not lines:
        raise ConfigError(f'--tokens {path}: there is nobody in it; write a line id = "token" for each client')
    digests: dict[str, bytes] = {}
    seen: set[bytes] = set()
    for name, token in lines.items():
        _check(f"--tokens {path}: {name!r}", name, token)
        digest = _digest(token)
        if digest in seen:
            raise ConfigError(f"--tokens {path}: {name!r} has the token of another client; each needs its own")
        digests[name] = digest
        seen.add(digest)
    return _Kept(digests=digests, short=tuple(name for name, token in lines.items() if len(token) < SHORT))


def _check(where: str, name: str, token: object) -> None:
    if not name or not is_name(name):
        raise ConfigError(f"{where}: a client's name has 1 to 64 printable characters without '/'")
    if not isinstance(token, str):
        raise ConfigError(f'{where}: a token is a text in quotes (a name with dots needs them too: "a.b" = "token")')
    if not token or not is_token(token):
        raise ConfigError(f"{where}: a token has printable ASCII characters without spaces")
