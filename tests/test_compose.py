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


# --- make pin-images


def pin(folder: Path, docker: str) -> subprocess.CompletedProcess[str]:
    """With a `docker` that does this; the file is a copy of ours."""
    tools = folder / "tools"
    tools.mkdir()
    (tools / "docker").write_text(f"#!/bin/sh\n{docker}\n")
    (tools / "docker").chmod(0o755)
    (folder / ".env").write_bytes((ROOT / ".env").read_bytes())
    command = [sys.executable, ROOT / "docker/pin.py", folder / ".env"]
    env = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("docker", "told"),
    [
        ("echo 'no such host' >&2; exit 1", "no such host"),
        ('[ "$1" = pull ] || echo cutlayer-base', "docker names no digest, but 'cutlayer-base'"),
        ('[ "$1" = pull ] || exit 3', "docker ended with 3"),
        ('case "$*" in *grafana*) exit 1;; image*) echo x@sha256:' + 64 * "a" + ";; esac", "grafana"),
    ],
)
def test_images_that_cannot_be_pinned_leave_the_file_as_it_is(tmp_path: Path, docker: str, told: str) -> None:
    done = pin(tmp_path, docker)
    assert done.returncode == 1
    assert "stays as it is" in done.stderr
    assert told in done.stderr
    assert (tmp_path / ".env").read_bytes() == (ROOT / ".env").read_bytes()
    assert names(tmp_path) == {".env", "tools"}


def test_images_are_written_by_digest_again_and_again(tmp_path: Path) -> None:
    docker = '[ "$1" = pull ] || echo "x@sha256:' + 64 * "a" + '"'
    assert pin(tmp_path, docker).returncode == 0
    lines = (tmp_path / ".env").read_text().splitlines()
    assert f"BASE=python:3.11-slim-bookworm@sha256:{64 * 'a'}" in lines
    assert sum("@sha256:" in line for line in lines) == 3
    assert len(lines) == len((ROOT / ".env").read_text().splitlines())


def test_the_base_stays_an_argument() -> None:
    text = (ROOT / "docker/Dockerfile").read_text()
    assert "ARG BASE=" in text
    assert all(
        line.split()[1].startswith("${BASE}") or line.split()[1].islower()
        for line in text.splitlines()
        if line.startswith("FROM ")
    )
