"""Certificates and tokens for tests, made as `sl-server certs` makes them, and servers and clients that use them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from sl_client.transport.access import Access
from sl_client.transport.tls import Tls
from sl_server.security.credentials import Credentials, make_credentials
from sl_server.security.issuing import Issued, hosts_of, issue, make_ca

LONG_AGO = datetime.now(UTC) - timedelta(days=40)
TOKENS = {name: f"{name}-{'0123456789abcdef' * 2}" for name in ("c0", "c1", "c2")}


class Authority:
    """A CA and the files it signs, in a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._issued = make_ca()
        self.ca = self._write("ca", self._issued)[0]

    def _write(self, name: str, issued: Issued) -> tuple[Path, Path]:
        """Each file in one step, as whoever renews a certificate should."""
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        for path, data in zip(paths, (issued.cert_pem, issued.key_pem), strict=True):
            new = path.with_suffix(".new")
            new.write_bytes(data)
            new.chmod(0o600)
            new.replace(path)
        return paths

    def server(self, file: str = "server", *, name: str = "server", hosts: list[str] | None = None, **when: object):
        """Certificate and key of a server, by default for this machine."""
        options = {"days": 10} | when
        return self._write(file, issue(self._issued, name, hosts=hosts or hosts_of([]), **options))

    def client(self, name: str, file: str = "", **when: object) -> tuple[Path, Path]:
        """Certificate and key of a client."""
        return self._write(file or name, issue(self._issued, name, **({"days": 10} | when)))

    def door(self, *, mutual: bool = True, tokens: Path | None = None) -> Credentials:
        """A server's, with its usual certificate."""
        cert, key = self.server()
        return make_credentials("127.0.0.1:0", cert=cert, key=key, client_ca=self.ca if mutual else None, tokens=tokens)

    def access(self, name: str = "", *, token: str = "", ca: Path | None = None) -> Access:
        """A client's; without a name it has no certificate."""
        cert, key = self.client(name) if name else (None, None)
        return Access(tls=Tls(ca=ca or self.ca, cert=cert, key=key), token=token)


def write_tokens(path: Path, tokens: dict[str, str] | None = None) -> Path:
    """A file for --tokens, readable by its owner alone."""
    path.touch(0o600)
    path.write_text("".join(f'{name} = "{token}"\n' for name, token in (tokens or TOKENS).items()))
    return path
