"""Containers as a user starts them: `make test-docker`. Needs an engine and docker-compose (either version); builds the images first."""

from __future__ import annotations

import json
import socket
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from composed import PROMETHEUS, ROOT, Project, building, docker, engine, until

missing = engine()
pytestmark = [
    pytest.mark.docker,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(missing is not None, reason=str(missing)),
]
RUN = ROOT / "tests" / "docker" / "run.toml"
CLIENTS = 3
QUICK = {"RUN_FILE": RUN, "CLIENTS": CLIENTS, "CLIENT_CPUS": 1, "JSON": 1, "CHAOS_EVERY": 2}


@pytest.fixture(scope="module", autouse=True)
def images() -> None:
    """As `docker-compose build` makes them, and a Prometheus."""
    project = Project("cutlayer-build")
    for service in ("client", "server"):  # one at a time: the second takes the first one's layers
        project.compose("build", service, timeout=1000)
    base = ("--build-arg", f"BASE={building()['BASE']}") if "BASE" in building() else ()
    network = ("--network", building().get("BUILD_NETWORK", "default"))
    folder = ROOT / "tests" / "docker"
    docker("build", *network, *base, "-t", PROMETHEUS, "-f", folder / "prometheus.Dockerfile", folder, timeout=600)


@pytest.fixture
def project() -> Iterator[Project]:
    one = Project(f"cutlayer-test-{uuid.uuid4().hex[:8]}", **QUICK)
    try:
        yield one
    finally:
        one.down("--volumes", "--remove-orphans")
        assert one.left() == {"containers": [], "networks": [], "volumes": []}


@pytest.fixture(scope="module")
def sha256() -> str:
    """Of the weights that an undisturbed run ends with, in one process, in the same image."""
    return simulated()["weights_sha256"]


def simulated() -> dict:
    mount = ("-v", f"{RUN}:/run.toml:ro", "--tmpfs", "/runs:uid=10001", "--workdir", "/runs")
    done = docker("run", "--rm", *mount, "cutlayer-server", "simulate", "/run.toml", "--json")
    return json.loads(done.stdout.splitlines()[-1])


def rounds(project: Project, service: str = "server") -> int:
    return max([0, *(event["round"] for event in project.events(service, "round"))])


def reach(project: Project, number: int, service: str = "server") -> None:
    def why() -> str:
        return project.logs(service) + project.logs("client")

    until(lambda: rounds(project, service) >= number, why)


def finish(project: Project, service: str = "server") -> dict:
    assert project.wait(service) == 0, project.logs(service)
    (summary,) = project.events(service, "summary")
    print(f"\n{project.name}: accuracy {summary['evaluation']['accuracy']:.2%} after {summary['seconds']} s")
    return summary


def test_up_trains_down_leaves_volumes_and_up_resumes(project: Project, sha256: str) -> None:
    project.up()
    until(lambda: project.healthy("client") == CLIENTS, lambda: project.logs("client"))
    assert project.healthy("server") == 1
    reach(project, 2)
    until(lambda: project.query("sl_round >= 2"), lambda: str(project.query("up")))
    for series in ("sl_wire_bytes_total", "sl_step_seconds_bucket", "sl_clients", "sl_loss", "sl_steps_total"):
        assert project.query(series), series
    assert {series["metric"]["direction"] for series in project.query("sl_wire_bytes_total > 0")} == {"up", "down"}

    (server,) = project.containers("server")
    docker("kill", "--signal", "KILL", server)  # of the engine's own doing: it is not started again
    before = project.left()
    project.down()
    assert project.left() == {"containers": [], "networks": [], "volumes": before["volumes"]}
    project.up()
    (resumed,) = project.events("server", "resumed")
    assert resumed["checkpoint"] >= 2

    reach(project, 8)
    project.compose("stop")  # as `down` begins
    assert project.events("server", "drained"), project.logs("server")
    (server,) = project.containers("server")
    assert project.state(server)["ExitCode"] == 0, "it was killed before it had done"
    project.down()
    project.up("server", "client")  # and nobody who scrapes
    summary = finish(project)
    assert summary["finished"]
    assert summary["weights_sha256"] == sha256
    assert summary["evaluation"]["accuracy"] > 0.7
    assert [project.state(one)["ExitCode"] for one in project.containers("client")] == [0] * CLIENTS

    project.compose("up", "-d", "--no-build", "server")
    assert project.wait("server") == 0
    assert "holds a run that is over" in project.logs("server")
    assert project.events("server", "over")


def test_prometheus_that_dies_costs_no_training(project: Project) -> None:
    project.env["SETTINGS"] = "run.rounds=6"
    project.up()
    reach(project, 1)
    (prometheus,) = project.containers("prometheus")
    docker("kill", prometheus)
    assert finish(project)["finished"]


def test_tls_with_certificates_of_its_own_making(project: Project, sha256: str) -> None:
    project.env["COMPOSE_PROFILES"] = "tls"
    project.up("server-tls", "client-tls")
    summary = finish(project, "server-tls")
    assert summary["weights_sha256"] == sha256
    assert project.events("server-tls", "listening")[0]["tls"] is True
    names = {event["client"] for event in project.events("client-tls", "joined")}
    assert names == {"c0", "c1", "c2"}, "each goes by a certificate of its own"


def test_chaos_changes_no_bit(project: Project, sha256: str) -> None:
    project.env["COMPOSE_PROFILES"] = "chaos"
    project.up("server", "chaos", "client-chaos")
    summary = finish(project)
    assert "cut a connection after" in project.logs("chaos")
    assert project.events("client-chaos", "lost")
    assert summary["weights_sha256"] == sha256


# --- what goes wrong says so, and does not go on for ever


def ran(*words: object) -> subprocess.CompletedProcess[str]:
    return docker("run", "--rm", "--read-only", "--tmpfs", "/tmp", *words, check=False)


def test_without_a_volume_it_says_what_is_missing() -> None:
    done = ran("-e", "SL_INSECURE=1", "cutlayer-server")
    assert done.returncode == 2
    assert "/runs cannot be written to by user 10001: mount a volume there" in done.stderr
    assert "--out /runs/first: Read-only file system" in done.stderr


def test_a_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    secret = tmp_path / "run.toml"
    secret.write_text("[run]\n")
    secret.chmod(0o000)
    done = ran("-v", f"{secret}:/etc/cutlayer/run.toml:ro", "-e", "SL_INSECURE=1", "cutlayer-server")
    assert done.returncode == 2
    assert "run.toml' is not readable" in done.stderr


def test_a_configuration_that_is_not_there(project: Project) -> None:
    project.env["RUN_FILE"] = "./no-such-run.toml"
    done = project.up("server", check=False)
    assert done.returncode != 0
    assert "no-such-run.toml" in done.stderr
    assert "does not exist" in done.stderr
    assert not (ROOT / "no-such-run.toml").exists()


def test_a_wrong_configuration_ends_after_a_few_tries(project: Project) -> None:
    project.env |= {"SETTINGS": "run.round=3"}
    project.up("server", check=False)
    (server,) = project.containers("server")

    def gave_up() -> bool:
        found = json.loads(docker("inspect", server).stdout)[0]
        return found["RestartCount"] == 3 and not found["State"]["Running"]

    until(gave_up, lambda: project.logs("server"))
    assert project.state(server)["ExitCode"] == 2
    assert project.logs("server").count("run.round: unknown key, did you mean 'rounds'?") == 4


def test_a_port_that_is_taken(project: Project) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        project.env["SERVER_PORT"] = f"127.0.0.1:{taken.getsockname()[1]}"
        done = project.up("server", check=False)
    assert done.returncode != 0
    assert "address already in use" in done.stderr


def test_a_client_without_a_server_gives_up_in_words() -> None:
    address = ("-e", "SL_SERVER=127.0.0.1:9", "-e", "SL_RETRY=2", "-e", "SL_INSECURE=1", "-e", "SL_STATE=/tmp")
    done = ran(*address, "cutlayer-client")
    assert done.returncode == 4
    assert "no server at 127.0.0.1:9 for 2 s" in done.stderr


def test_one_client_too_many_is_refused(project: Project) -> None:
    project.compose("up", "-d", "--no-build", "--scale", f"client={CLIENTS + 1}", "server", "client")
    until(lambda: "all 3 shards of this run have a client" in project.logs("client"), lambda: project.logs("client"))
    ask = ("sl-client", "doctor", "--json")
    asked = [docker("exec", one, *ask, check=False) for one in project.containers("client", running=True)]
    good = [
        done.stdout for done in asked if done.returncode == 0
    ]  # the one too many ends meanwhile, whatever runs in it
    assert good, asked
    doctor = json.loads(good[0])
    assert doctor["wire_version"] == doctor["server_wire_version"]
    assert finish(project)["finished"]


def test_no_gpu_where_the_profile_asks_for_one(project: Project) -> None:
    docker("tag", "cutlayer-server", "cutlayer-server:cuda")
    project.env["COMPOSE_PROFILES"] = "gpu"
    done = project.up("server-gpu", check=False)
    assert done.returncode != 0
    assert "could not select device driver" in done.stderr
    asked = ran("-e", "SL_SET=server.device=cuda", "-e", "SL_INSECURE=1", "-v", "/runs", "cutlayer-server")
    assert asked.returncode == 2
    assert "sees no CUDA device here" in asked.stderr


def test_an_image_of_another_architecture_is_refused_by_name() -> None:
    ours = docker("version", "--format", "{{.Server.Arch}}").stdout.strip()
    other = {"amd64": "arm64"}.get(ours, "amd64")
    done = ran("--pull", "never", "--platform", f"linux/{other}", "cutlayer-client")
    assert done.returncode == 125
    assert f"wanted linux/{other}, actual: linux/{ours}" in done.stderr


TRAIN = """
import torch
from sl_common.models import MODELS, build, join
from sl_common.training.optim import Adam, Sgd
from sl_common.training.segment import Segment
for name in MODELS:
    image = {"mlp": (1, 8, 8), "cnn": (1, 28, 28), "cnn_emnist": (1, 28, 28)}.get(name, (3, 32, 32))
    for rule in (Sgd(momentum=0.9), Adam(), Adam(kind="adamw")):
        lower = Segment(join(build(name, input=image, classes=10, args={}, seed=0)[:2]), rule)
        z = lower.forward(torch.rand(2, *image))
        lower.backward(z, torch.ones_like(z))
        lower.step()
print(len(MODELS), "models")
"""


def test_nothing_is_missing_in_the_clients_image() -> None:
    """What is taken out of it is used by no codec, no model and no optimiser; a clean exit is the proof for those that train."""
    mount = ("-v", f"{ROOT / 'tests'}:/tests:ro", "-e", "PYTHONPATH=/tests")
    python = (*mount, "--entrypoint", "/opt/cutlayer-client/bin/python", "cutlayer-client")
    golden = ran(*python, "/tests/edge/on_device.py")
    assert json.loads(golden.stdout)["wrong"] == [], golden
    assert ran(*python, "-c", TRAIN).stdout.endswith("models\n")


def test_images_are_what_they_say() -> None:
    """Not root, a label for who looks, nothing of the server on a client, and they start as Python does."""
    for name in ("client", "server"):
        config = json.loads(docker("inspect", f"cutlayer-{name}").stdout)[0]["Config"]
        assert config["User"] == "cutlayer"
        assert config["Labels"]["org.opencontainers.image.title"] == f"cutlayer-{name}"
        assert ran(f"cutlayer-{name}", "--version").stdout.startswith("cutlayer ")
    script = "import importlib.util as u; print([m for m in ('sl_server', 'prometheus_client', 'grpc_reflection') if u.find_spec(m)])"
    inside = ran("--entrypoint", "/opt/cutlayer-client/bin/python", "cutlayer-client", "-c", script)
    assert inside.stdout.strip() == "[]", inside
