"""Manifests are what Kubernetes takes, and agree with each other and with what our commands read."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from asking import got

from sl_common.config.run_config import RunConfig
from sl_server.telemetry.health import Health
from sl_server.telemetry.scrapes import Scrapes

ROOT = Path(__file__).parent.parent
BASE = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.27", "1.34")  # the oldest that labels, Indexed jobs and gRPC need, and a new one
KUSTOMIZATION = yaml.safe_load((BASE / "kustomization.yaml").read_text())


def manifests() -> Iterator[dict]:
    for name in KUSTOMIZATION["resources"]:
        yield from yaml.safe_load_all((BASE / name).read_text())


def one(kind: str) -> dict:
    (found,) = (manifest for manifest in manifests() if manifest["kind"] == kind)
    return found


def pod(kind: str) -> dict:
    return one(kind)["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
def test_every_manifest_is_valid(version: str) -> None:
    own = [manifest for manifest in manifests() if manifest["kind"] != "ServiceMonitor"]  # no part of Kubernetes
    assert len(own) == 4
    for manifest in own:
        kubernetes_validate.validate(manifest, version, strict=True)


def test_the_schema_would_notice() -> None:
    wrong = one("Job")
    wrong["spec"]["template"]["spec"]["containers"][0]["memory"] = "1Gi"
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_names_and_labels_agree() -> None:
    service, server, monitor = one("Service"), one("StatefulSet"), one("ServiceMonitor")
    labels = server["spec"]["template"]["metadata"]["labels"]
    assert server["spec"]["serviceName"] == service["metadata"]["name"]
    assert server["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ports = {port["name"]: port for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= ports.keys()
    (container,) = pod("StatefulSet")["containers"]
    assert {port["name"] for port in container["ports"]} == {port["targetPort"] for port in ports.values()}
    (generated,) = KUSTOMIZATION["configMapGenerator"]
    assert {v["configMap"]["name"] for v in pod("StatefulSet")["volumes"] if "configMap" in v} == {generated["name"]}
    assert all((BASE / file).exists() for file in generated["files"])
    images = {image["name"] for image in KUSTOMIZATION["images"]}
    assert images == {pod(kind)["containers"][0]["image"] for kind in ("StatefulSet", "Job")}


def test_probes_ask_for_pages_that_there_are() -> None:
    (container,) = pod("StatefulSet")["containers"]
    asked = {name: container[f"{name}Probe"]["httpGet"] for name in ("readiness", "liveness")}
    assert {get["port"] for get in asked.values()} <= {port["name"] for port in container["ports"]}
    assert {name: get["path"] for name, get in asked.items()} == {"readiness": "/readyz", "liveness": "/healthz"}
    scrapes, health = Scrapes(lambda: b""), Health(threading.Thread())
    port = scrapes.serve("127.0.0.1", 0, health)
    assert {got(port, get["path"])[0] for get in asked.values()} == {200, 503}  # it lives, and is starting
    scrapes.close()


def test_every_mount_has_its_volume() -> None:
    claims = {claim["metadata"]["name"] for claim in one("StatefulSet")["spec"]["volumeClaimTemplates"]}
    for kind, more in (("StatefulSet", claims), ("Job", set())):
        (container,) = pod(kind)["containers"]
        volumes = {volume["name"] for volume in pod(kind)["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes | more


def test_the_run_counts_as_many_clients_as_the_job() -> None:
    config = RunConfig.from_toml((BASE / "run.toml").read_text())
    job = one("Job")["spec"]
    assert job["completions"] == job["parallelism"] == config.run.clients == config.shards
    service = one("Service")
    env = {entry["name"]: entry["value"] for entry in pod("Job")["containers"][0]["env"]}
    assert env["SL_SERVER"] == f"{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"
    secrets = {
        v["secret"]["secretName"] for kind in ("StatefulSet", "Job") for v in pod(kind)["volumes"] if "secret" in v
    }
    assert secrets == set(re.findall(r"create secret generic (\S+)", (BASE / "README.md").read_text()))


def test_the_compose_default_is_a_run() -> None:
    """And every knob of docker-compose.yml is in .env, and the other way round."""
    RunConfig.from_toml((ROOT / "docker" / "run.toml").read_text())
    RunConfig.from_toml((ROOT / "tests" / "docker" / "run.toml").read_text())
    used = set(re.findall(r"\$\{(\w+)\}", (ROOT / "docker-compose.yml").read_text()))
    lines = [line for line in (ROOT / ".env").read_text().splitlines() if line and not line.startswith("#")]
    knobs = {line.partition("=")[0] for line in lines}
    assert knobs - {"COMPOSE_PROFILES", "COMPOSE_PROJECT_NAME"} == used


def test_a_client_image_has_what_its_code_imports() -> None:
    """What requirements.py leaves out of the client is imported by the server alone."""
    script = (ROOT / "docker" / "requirements.py").read_text()
    (names,) = re.findall(r"SERVER_ONLY = \{(.*)\}", script)
    modules = {"prometheus-client": "prometheus_client", "grpcio-health-checking": "grpc_health"}
    modules |= {"grpcio-reflection": "grpc_reflection"}
    assert set(re.findall(r'"([\w-]+)"', names)) == modules.keys()
    for path in [*(ROOT / "sl_client").rglob("*.py"), *(ROOT / "sl_common").rglob("*.py")]:
        text = path.read_text()
        assert not any(f"import {module}" in text or f"from {module}" in text for module in modules.values()), path
