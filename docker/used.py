"""Use of torch what every run uses, or of the other libraries what a command does, so that Python compiles that and no more into the image."""

from __future__ import annotations

import sys


def torch_() -> None:
    """A network, its gradient, and each optimiser: torch imports some of itself only when it is used."""
    import torch
    from torch import nn

    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(18, 2)
    )
    for make in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        optimizer = make(net.parameters(), lr=0.01)
        loss = nn.functional.cross_entropy(net(torch.rand(4, 1, 8, 8)), torch.tensor([0, 1, 0, 1]))
        loss.backward()
        optimizer.step()
    torch.from_numpy(torch.ones(2).numpy())
    print("torch", torch.__version__, "cuda", torch.version.cuda)


def libraries() -> None:
    """What both commands import."""
    import grpc
    import pydantic
    import rich.progress
    import rich.table
    import safetensors.torch
    import typer
    from google.protobuf import descriptor_pb2, json_format

    class Value(pydantic.BaseModel):
        number: int = 0

    Value.model_validate_json(Value().model_dump_json())
    app = typer.Typer()
    app.command()(lambda: None)
    app([], standalone_mode=False)
    print(grpc.__version__, rich.progress.__name__, rich.table.__name__, safetensors.torch.__name__, typer.__version__)
    print(descriptor_pb2.__name__, json_format.__name__)


if __name__ == "__main__":
    {"torch": torch_, "libraries": libraries}[sys.argv[1]]()
