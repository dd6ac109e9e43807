"""`docker-compose up` as a person types it: one project of containers, taken down at the end whatever happened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
PATIENCE_S = 240.0
# Images of Prometheus and Grafana come from a registry; a test has what the machine's own packages have.
PROMETHEUS = "cutlayer-test-prometheus"
SERVICES = ("server", "client", "prometheus")


def engine() -> str | None:
    """Why no containers can be run here; None if they can."""
    if shutil.which("docker") is None:
        return "there is no docker here"
    info = subprocess.run(["docker", "info"], capture_output=True, text=True)
    if info.returncode:
        return (
            f"no engine answers: {info.stderr.strip().splitlines()[-1] if info.stderr.strip() else info.stdout.strip()}"
        )
    return None if _compose() else "there is neither docker compose nor docker-compose here"


def _compose() -> list[str]:
    if not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode:
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else []


def building() -> dict[str, str]:
    """Build arguments; where pip is configured for packages of its own, images are built from those, over this machine's network."""
    own = {"TORCH": "pip", "BUILD_NETWORK": "host"} if os.environ.get("PIP_FIND_LINKS") else {}
    return own | {name: os.environ[name] for name in ("BASE", "TORCH", "BUILD_NETWORK") if name in os.environ}


def docker(*words: object, check: bool = True, timeout: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """One docker command."""
    done = subprocess.run(["docker", *map(str, words)], capture_output=True, text=True, timeout=timeout)
    assert not check or done.returncode == 0, done.stderr
    return done


def until(what: Callable[[], object], why: Callable[[], str], patience_s: float = PATIENCE_S) -> None:
    """Wait for something to be true."""
    end = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < end, why()
        time.sleep(0.3)


class Project:
    """One project's containers, networks and volumes."""

    def __init__(self, name: str, **settings: object) -> None:
        """`settings` are knobs of .env."""
        self.name = name
        self.env = os.environ | {"COMPOSE_PROJECT_NAME": name, "PROMETHEUS_IMAGE": PROMETHEUS} | building()
        self.env |= {"SERVER_PORT": "127.0.0.1:", "METRICS_PORT": "127.0.0.1:", "PROMETHEUS_PORT": "127.0.0.1:"}
        self.env |= {key: str(value) for key, value in settings.items()}

    def compose(
        self, *words: object, check: bool = True, timeout: float = PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """docker-compose WORDS."""
        done = subprocess.run(
            [*_compose(), *map(str, words)], cwd=ROOT, env=self.env, capture_output=True, text=True, timeout=timeout
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def up(self, *services: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """In the background, without building."""
        return self.compose("up", "-d", "--no-build", *(services or SERVICES), check=check)

    def containers(self, service: str = "", *, running: bool = False) -> list[str]:
        """Ids, by number."""
        labels = [f"label=com.docker.compose.project={self.name}"]
        labels += [f"label=com.docker.compose.service={service}"] if service else []
        filters = [word for label in labels for word in ("--filter", label)]
        return docker("ps", "-q", "--no-trunc", *([] if running else ["-a"]), *filters).stdout.split()

    def state(self, container: str) -> dict:
        """What the engine says of it."""
        return json.loads(docker("inspect", container).stdout)[0]["State"]

    def healthy(self, service: str) -> int:
        """How many of a service's containers are."""
        found = [self.state(one) for one in self.containers(service, running=True)]
        return sum(state.get("Health", {}).get("Status") == "healthy" for state in found)

    def logs(self, service: str) -> str:
        """Everything that a service's containers have said."""
        done = [docker("logs", one, check=False) for one in self.containers(service)]
        return "".join(one.stdout + one.stderr for one in done)

    def events(self, service: str, name: str) -> list[dict]:
        """Those of one name, of all its containers, with JSON=1."""
        lines = [json.loads(line) for line in self.logs(service).splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def wait(self, service: str) -> int:
        """Until a service's one container has ended: its exit code."""
        (one,) = self.containers(service)
        until(lambda: not self.state(one)["Running"], lambda: self.logs(service))
        return self.state(one)["ExitCode"]

    def port(self, service: str, port: int) -> str:
        """HOST:PORT on this machine."""
        return self.compose("port", service, port).stdout.strip()

    def query(self, expression: str) -> list[dict]:
        """What Prometheus answers; nothing while it does not."""
        url = f"http://{self.port('prometheus', 9090)}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]["result"]
        except OSError:  # it is starting, or the machine is busy
            return []

    def left(self) -> dict[str, list[str]]:
        """What there is of it in the engine."""
        label = f"label=com.docker.compose.project={self.name}"
        return {
            "containers": self.containers(),
            "networks": docker("network", "ls", "-q", "--filter", label).stdout.split(),
            "volumes": sorted(docker("volume", "ls", "-q", "--filter", label).stdout.split()),
        }

    def down(self, *options: str) -> None:
        """Of all profiles."""
        profiles = [word for name in ("plain", "gpu", "tls", "chaos") for word in ("--profile", name)]
        self.compose(*profiles, "down", *options)


if __name__ == "__main__":
    sys.exit(engine())
