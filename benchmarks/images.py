"""Measures the container images as they travel: each layer compressed, against torch's own wheel.

python -m benchmarks.images; `make bench-images`, after `docker-compose build`. Layers are compressed as `docker push` does
it and registries keep them: gzip at its default level. The layers of the base image are its makers'; ours are what is added. It writes
images.json and images.md.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from benchmarks.page import Page, parser_of
from benchmarks.processes import BenchmarkFailed

GOAL_MB = 120  # above torch's wheel, for the client


def said(*command: str) -> str:
    """What a command prints. Raises BenchmarkFailed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkFailed(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def compressed(stream: IO[bytes]) -> int:
    """Bytes after gzip."""
    packer, total = zlib.compressobj(wbits=31), 0
    while data := stream.read(1 << 20):
        total += len(packer.compress(data))
    return total + len(packer.flush())


def layers(image: str, below: int, without: Sequence[str]) -> list[int]:
    """Compressed bytes of each layer, the lowest first; of those of the base, so many, without these folders."""
    with tempfile.TemporaryFile() as file:
        subprocess.run(["docker", "save", image], stdout=file, check=True)
        file.seek(0)
        with tarfile.open(fileobj=file) as saved:
            manifest = saved.extractfile("manifest.json")
            assert manifest is not None
            (one,) = json.load(manifest)
            found = []
            for number, name in enumerate(one["Layers"]):
                layer = saved.extractfile(name)
                assert layer is not None
                found.append(compressed(lean(layer, without) if without and number < below else layer))
            return found


def lean(layer: IO[bytes], without: Sequence[str]) -> IO[bytes]:
    """A layer's archive without some folders."""
    out = tempfile.TemporaryFile()  # noqa: SIM115  (the caller reads it)
    with tarfile.open(fileobj=layer) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            if not f"/{member.name.removeprefix('./')}/".startswith(tuple(f"{folder}/" for folder in without)):
                new.addfile(member, old.extractfile(member) if member.isreg() else None)
    out.seek(0)
    return out


def wheel(image: str) -> tuple[str, int]:
    """The version of torch in an image, and the bytes of its wheel, as pip gets it there."""
    python = ("docker", "run", "--rm", "--entrypoint", "/opt/torch/bin/python", image)
    version = said(*python, "-c", "import torch; print(torch.__version__)").strip()
    with tempfile.TemporaryDirectory() as folder:
        said("pip", "download", "--quiet", "--no-deps", "--dest", folder, f"torch=={version}")
        (path,) = Path(folder).glob("torch-*.whl")
        return version, path.stat().st_size


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = parser_of("images", __doc__)
    parser.add_argument("--base", default="python:3.11-slim-bookworm", help="what the images were built on")
    parser.add_argument(
        "--without", nargs="*", default=[], metavar="DIR", help="folders of the base not to count: its caches"
    )
    options = parser.parse_args(argv)
    below = len(json.loads(said("docker", "inspect", options.base))[0]["RootFS"]["Layers"])
    version, torch = wheel("cutlayer-client")
    sizes = {name: layers(f"cutlayer-{name}:latest", below, options.without) for name in ("client", "server")}
    page = Page("images", "images")
    mb = 1e-6
    rows = [
        "| image | base | torch and its libraries | everything else of ours | together |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, found in sizes.items():
        base, own = sum(found[:below]), found[below:]
        rows.append(
            f"| `{name}` | {base * mb:.1f} | {max(own) * mb:.1f} | {(sum(own) - max(own)) * mb:.1f} | {sum(found) * mb:.1f} |"
        )
    client = sum(sizes["client"])
    above = (client - torch) * mb
    page.save(
        options.results,
        [
            "# Size of the images",
            f"{page.made_by}; torch {version}, MB of 10⁶ bytes, compressed with gzip at its default level.",
            f"The base is what `{options.base}` is on that machine"
            + (f", without {', '.join(options.without)}." if options.without else "."),
            "\n".join(rows),
            f"torch's wheel has {torch * mb:.1f} MB. The client's image has {above:+.1f} MB besides, base included; the goal is at most "
            f"{GOAL_MB}: {'met' if above <= GOAL_MB else 'not met'}.",
        ],
        {"torch": version, "wheel_bytes": torch, "base_layers": below, "layers": sizes},
    )


if __name__ == "__main__":
    main()
