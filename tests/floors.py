"""`make test-floors`: a venv with the oldest versions that pyproject.toml allows, the package in it, and a fast part of the tests.

constraints-floors.txt names every package, so pip resolves nothing: `--no-deps` takes seconds where resolving floors backtracked for ten
minutes, and `pip check` says whether they fit together. torch, and what only torch needs, is borrowed from the Python that runs this
program: torch's own floor is not tried.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import Distribution, distribution
from pathlib import Path

ROOT = Path(__file__).parent.parent
FLOORS = ROOT / "constraints-floors.txt"
HOME = ROOT / "build" / "floors"
BORROWED = ("torch", "sympy", "mpmath", "networkx", "fsspec")
LEFT_OUT = ("kubernetes-validate", "mypy", "py-spy", "ruff", "types-protobuf")  # programs that no test below needs
CLI = (  # typer, rich, grpcio with health and reflection, over processes
    "simulate_writes_the_run_directory",
    "check_shows_each_directions_bytes_and_ratio",
    "health",
    "reflection_lists_the_service",
    "a_run_from_its_first_client_to_its_operators_interrupt",
)
CORE = (
    "floors",
    "wire",
    "tensors",
    "codec",
    "config",
    "optim",
    "golden",
    "scenarios",
)  # protobuf, numpy, pydantic, filelock
EXTRAS = (
    "export",
    "certs",
    "report",
    "tensorboard",
    "predict",
)  # safetensors, cryptography, matplotlib, jinja2, pillow
TESTS = (*CORE, *(f"cli.py::test_{name}" for name in CLI), *EXTRAS)


def pins() -> dict[str, str]:
    """Version by normalised name, of constraints-floors.txt."""
    rows = [line.split("#")[0].strip() for line in FLOORS.read_text().splitlines()]
    return {name: version for name, _, version in (row.partition("==") for row in rows if row)}


def normalised(name: str) -> str:
    """As package indexes compare names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def borrow(into: Path) -> Path:
    """A folder with links to what torch is made of here."""
    into.mkdir(parents=True, exist_ok=True)
    for name in BORROWED:
        found: Distribution = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            link = into / top
            link.unlink(missing_ok=True)
            link.symlink_to(Path(str(found.locate_file(top))))
    return into


def install() -> Path:
    """The venv's Python, with the floors, the package, and torch borrowed."""
    venv.create(HOME, clear=True, symlinks=True, with_pip=True)
    python = HOME / "bin" / "python"
    site = sysconfig.get_path("purelib", "venv", {"base": str(HOME), "platbase": str(HOME)})
    Path(site, "borrowed.pth").write_text(f"{borrow(ROOT / 'build' / 'floors-torch')}\n")
    taken = [f"{name}=={version}" for name, version in pins().items() if name not in (*BORROWED, *LEFT_OUT)]
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", *taken], check=True)
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--editable", str(ROOT)], check=True)
    subprocess.run([*pip, "check"], check=True)
    return python


def main() -> None:
    """Install, test, and end with the tests' exit code."""
    python = install()
    tests = [f"tests/test_{name}" if ".py" in name else f"tests/test_{name}.py" for name in TESTS]
    done = subprocess.run(
        [python, "-m", "pytest", "-n", "2", "-m", "not slow and not docker", *tests], cwd=ROOT, check=False
    )
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
