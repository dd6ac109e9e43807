"""hivemind: the head is an expert on a server, a RemoteExpert in the client's own autograd graph.

python -m benchmarks.peers.with_hivemind --workload mlp --steps 1500 --clients 2

That is the way it is meant to be used, and it differs from the others: logits come back and the loss is the client's, a step is two calls,
and the expert computes its forward pass in both (it keeps nothing in between). Batches of several clients are not joined.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading

import torch.nn.functional as F
from hivemind.dht import DHT
from hivemind.moe import ModuleBackend, Server
from hivemind.moe.client.expert import create_remote_experts
from hivemind.moe.expert_uid import ExpertInfo
from hivemind.p2p import PeerID
from hivemind.utils.tensor_descr import BatchTensorDescriptor
from torch import Tensor

from benchmarks.peers.work import Say, arguments, play, train
from benchmarks.processes import Line
from benchmarks.sides import limit_s
from benchmarks.workloads import BATCH, WORKLOADS, sgd

EXPERT = "head.0"
HOST = ["/ip4/127.0.0.1/tcp/0"]


def server(args: argparse.Namespace, say: Say) -> None:
    """Serves until it is ended."""
    workload = WORKLOADS[args.workload]
    head = workload.segments()[1]
    backend = ModuleBackend(
        name=EXPERT,
        module=head,
        optimizer=sgd(head),
        args_schema=(BatchTensorDescriptor(*workload.cut),),
        outputs_schema=BatchTensorDescriptor(10),
        max_batch_size=BATCH,
    )
    dht = DHT(host_maddrs=HOST, start=True)
    serving = Server(dht, {EXPERT: backend}, num_connection_handlers=args.clients, device="cpu")
    serving.run_in_background(await_ready=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # set after the forks, whose children must die of it
    say({"address": ",".join([str(dht.peer_id), *map(str, dht.get_visible_maddrs())])})
    try:
        threading.Event().wait(limit_s(args.steps))
    finally:
        serving.shutdown()


def client(args: argparse.Namespace) -> Line:
    """The span of one client."""
    peer, *addresses = args.address.split(",")
    dht = DHT(initial_peers=addresses, host_maddrs=HOST, client_mode=True, start=True)
    expert = create_remote_experts([ExpertInfo(EXPERT, PeerID.from_base58(peer))], dht)[0]

    def exchange(z: Tensor, y: Tensor) -> Tensor:
        z.requires_grad_()
        F.cross_entropy(expert(z), y).backward()
        assert z.grad is not None
        return z.grad

    span = train(args.workload, args.steps, args.folder, args.clients, exchange)
    dht.shutdown()
    return span


if __name__ == "__main__":
    play(arguments(__doc__), "hivemind", server, client)
