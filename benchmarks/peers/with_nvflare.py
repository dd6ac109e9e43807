"""NVFlare's Collab API in its SimEnv: every client calls a published method of the server once a batch.

python -m benchmarks.peers.with_nvflare --workload mlp --steps 1500 --clients 2

The simulator starts a process for the server and one for each client, which talk over TCP on loopback.
By default a message holds a reference and its receiver asks for the tensor in a call of its own; with `--inline` the message holds it.
"""

from __future__ import annotations

import argparse
import json
import os

from nvflare.collab import CollabRecipe
from nvflare.recipe import SimEnv

from benchmarks.peers.nvflare_app import Client, Server
from benchmarks.peers.work import arguments, play
from benchmarks.processes import ROOT, Line


def whole(args: argparse.Namespace) -> list[Line]:
    """All of it: the simulator starts the sites."""
    os.environ["PYTHONPATH"] = str(ROOT)
    if args.inline:
        os.environ["NVFLARE_TENSOR_DOWNLOAD_CHUNK_SIZE"] = "0"
    folder = str(args.folder)
    recipe = CollabRecipe(
        job_name="bench",
        server=Server(args.workload, args.steps, folder),
        client=Client(args.workload, args.steps, args.clients, folder),
        min_clients=args.clients,
    )
    recipe.execute(SimEnv(num_clients=args.clients, workspace_root=folder, log_config="WARNING"))
    spans: list[Line] = json.loads((args.folder / "spans.json").read_text())
    if len({pid for span in spans for pid in (span["server"], span["client"])}) != 1 + args.clients:
        raise RuntimeError("the simulator ran several sites in one process")
    return spans


def _nobody(*_: object) -> Line:
    raise SystemExit("the simulator starts these itself")


if __name__ == "__main__":
    parser = arguments(__doc__)
    parser.add_argument("--inline", action="store_true", help="tensors in the message itself")
    play(parser, "nvflare", _nobody, _nobody, whole)
