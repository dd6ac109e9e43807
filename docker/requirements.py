"""requirements.py client|server < pyproject.toml : what a role needs besides torch, one requirement a line."""

from __future__ import annotations

import re
import sys
import tomllib

SERVER_ONLY = {"prometheus-client", "grpcio-health-checking", "grpcio-reflection"}


def name_of(requirement: str) -> str:
    """`grpcio` of `grpcio>=1.66`."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None, requirement
    return found[0].lower()


def main() -> None:
    """The server needs what the client does, what it alone imports, and what makes certificates."""
    (role,) = sys.argv[1:]
    project = tomllib.loads(sys.stdin.read())["project"]
    extras = project["optional-dependencies"]
    wanted = [r for r in project["dependencies"] if name_of(r) != "torch"]
    if role == "client":
        wanted = [r for r in wanted if name_of(r) not in SERVER_ONLY]
    else:
        wanted += extras["certs"] + extras.get("server", [])
    sys.stdout.write("\n".join(wanted) + "\n")


if __name__ == "__main__":
    main()
