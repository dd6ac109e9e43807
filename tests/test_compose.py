"""What containers of the profile `tls` can read, without an engine: the mounts of docker-compose.yml and what certs.sh puts there."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def volumes(service: str) -> dict[str, str]:
    """Volume -> where it is mounted, with its options."""
    mounts = [mount for mount in SERVICES[service].get("volumes", []) if isinstance(mount, str)]
    return {mount.partition(":")[0].strip("${}"): mount.partition(":")[2] for mount in mounts}


def test_the_authoritys_key_is_mounted_by_its_maker_alone() -> None:
    assert {name for name in SERVICES if "CERTS" in volumes(name)} == {"certs"}


def test_server_and_clients_mount_their_own_certificates_and_only_to_read() -> None:
    who = {name: {v: at for v, at in volumes(name).items() if v.endswith("CERTS")} for name in SERVICES}
    assert {name: mounts for name, mounts in who.items() if mounts and name != "certs"} == {
        "server-tls": {"SERVER_CERTS": "/certs:ro"},
        "client-tls": {"CLIENT_CERTS": "/certs:ro"},
    }


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The folders as the container `certs` leaves them."""
    for name in ("authority", "server", "clients"):
        (tmp_path / name).mkdir()
    run(tmp_path, 2)
    return tmp_path


def run(root: Path, clients: int) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "CERTS_ROOT": str(root), "CLIENTS": str(clients)}
    done = subprocess.run(["sh", ROOT / "docker/certs.sh"], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_each_volume_holds_what_is_its_own(made: Path) -> None:
    assert names(made / "server") == {"ca.pem", "revoked.pem", "server.pem", "server.key", "health.pem", "health.key"}
    assert names(made / "clients") == {"ca.pem", "c0.pem", "c0.key", "c1.pem", "c1.key"}
    for key in made.glob("*/*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_more_clients_get_certificates_and_nobody_else_gets_new_ones(made: Path) -> None:
    before = {path: path.read_bytes() for path in made.glob("*/*") if path.is_file()}
    run(made, 3)
    assert names(made / "clients") >= {"c2.pem", "c2.key"}
    assert {path: path.read_bytes() for path in before} == before
