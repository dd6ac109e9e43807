"""Small networks as users write them whose modules do more than a forward pass shows: for test_practice.py."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

Blocks = Sequence[tuple[str, nn.Module]]


class _Once(torch.autograd.Function):
    """Twice its input; its backward pass cannot be differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # noqa: ARG004
        return x * 2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # noqa: ARG004
        return grad * 2


class _Plain(torch.autograd.Function):
    """Its square, by saved numbers that know no history."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return torch.from_numpy((2 * ctx.x * grad.detach()).numpy())


class Odd(nn.Module):
    """(B, 16) to (B, 16), in one of many ways."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inner, self.last, self.calls = how, nn.Linear(16, 16), torch.zeros(0), 0
        self.history: list[Tensor] = []
        if how in ("grows", "retyped"):
            self.register_buffer("seen", torch.zeros(1, 16))
        if how == "late":
            self.register_buffer("seen", None)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, "_" + self.how)(x)

    def _once(self, x: Tensor) -> Tensor:
        return _Once.apply(self.inner(x))

    def _numpy(self, x: Tensor) -> Tensor:
        return _Plain.apply(self.inner(x))

    def _overwritten(self, x: Tensor) -> Tensor:
        return self.inner(x).sigmoid().mul_(2)

    def _overwritten_input(self, x: Tensor) -> Tensor:
        return self.inner(x.add_(1))

    def _eval_raises(self, x: Tensor) -> Tensor:
        if not self.training:
            raise ValueError("no evaluation here")
        return self.inner(x)

    def _eval_tuple(self, x: Tensor) -> Any:
        return self.inner(x) if self.training else (self.inner(x), x)

    def _train_tuple(self, x: Tensor) -> Any:
        return (self.inner(x), x) if self.training else self.inner(x)

    def _eval_shape(self, x: Tensor) -> Tensor:
        return self.inner(x) if self.training else self.inner(x)[:, :8]

    def _eval_double(self, x: Tensor) -> Tensor:
        return self.inner(x) if self.training else self.inner(x).double()

    def _history(self, x: Tensor) -> Tensor:
        state = 0.0 if self.last.numel() == 0 else self.last
        self.last = (self.inner(x) + state).mean(0)
        return self.inner(x) + self.last

    def _first_size(self, x: Tensor) -> Tensor:
        self.last = x.detach() if self.last.numel() == 0 else self.last
        return self.inner(x) + self.last

    def _grows(self, x: Tensor) -> Tensor:
        self.seen = x.detach()
        return self.inner(x)

    def _retyped(self, x: Tensor) -> Tensor:
        self.seen = self.seen.double()
        return self.inner(x)

    def _late(self, x: Tensor) -> Tensor:
        self.seen = x.detach().mean(0)
        return self.inner(x)

    def _detached(self, x: Tensor) -> Tensor:
        return self.inner(x.detach())

    def _no_grad(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.inner(x)

    def _kept(self, x: Tensor) -> Tensor:
        self.last = self.inner(x)
        self.history = [self.last.relu()]
        return self.last

    def _reentrant(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=True)

    def _reentrant_nothing(self, x: Tensor) -> Tensor:
        return checkpoint(torch.tanh, self.inner(x), use_reentrant=True)

    def _checkpoint(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)

    def _turned(self, x: Tensor) -> Tensor:
        return self.inner(x).t().contiguous().t()

    def _expanded(self, x: Tensor) -> Tensor:
        return self.inner(x).mean(1, keepdim=True).expand(-1, 16)

    def _half(self, x: Tensor) -> Tensor:
        return self.inner(x.float()).half()

    def _bfloat(self, x: Tensor) -> Tensor:
        return self.inner(x.float()).bfloat16()

    def _double(self, x: Tensor) -> Tensor:
        return self.inner(x.float()).double()

    def _counted(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 3:
            raise RuntimeError("enough")
        return self.inner(x)

    def _divided(self, x: Tensor) -> Tensor:
        return self.inner(x) / x.norm(dim=1, keepdim=True)

    def _stopped(self, x: Tensor) -> Tensor:
        return self.inner(x).round()

    def _generator(self, x: Tensor) -> Tensor:
        if not hasattr(self, "own"):
            self.own = torch.Generator().manual_seed(1)
        return self.inner(x) + torch.rand(16, generator=self.own)

    def _autocast(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.inner(x)


class Cast(nn.Module):
    """To float32, as layers of other types are followed."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float()


class Attention(nn.Module):
    """Over 4 tokens of 4 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 4, 4)
        return self.attention(x, x, x, need_weights=False)[0].flatten(1)


class Recurrent(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x.view(-1, 4, 4))[0].flatten(1)


class Words(nn.Module):
    """Looks numbers up."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(32, 4, sparse=sparse)

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x.flatten(1)[:, :4].abs().clamp(max=31).long()).flatten(1)


def _frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def module(how: str) -> nn.Module:
    """(B, 16) to (B, 16)."""
    with warnings.catch_warnings(action="ignore"):
        known = {
            "attention": Attention,
            "encoder": lambda: nn.Sequential(
                nn.Unflatten(1, (4, 4)), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten()
            ),
            "lstm": lambda: Recurrent(nn.LSTM(4, 4, batch_first=True)),
            "gru": lambda: Recurrent(nn.GRU(4, 4, batch_first=True)),
            "words": lambda: Words(sparse=False),
            "sparse": lambda: Words(sparse=True),
            "frozen": lambda: _frozen(nn.Linear(16, 16)),
            "nothing": nn.Identity,
            "relu": lambda: nn.ReLU(inplace=True),
            "weight_norm": lambda: nn.utils.weight_norm(nn.Linear(16, 16)),
            "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(16, 16)),
            "new_weight_norm": lambda: parametrizations.weight_norm(nn.Linear(16, 16)),
            "new_spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(16, 16)),
            "orthogonal": lambda: parametrizations.orthogonal(nn.Linear(16, 16)),
            "batch_norm": lambda: nn.BatchNorm1d(16),
            "lazy_norm": nn.LazyBatchNorm1d,
            "no_stats": lambda: nn.BatchNorm1d(16, track_running_stats=False, momentum=None),
            "cumulative": lambda: nn.BatchNorm1d(16, momentum=None),
            "group_norm": lambda: nn.GroupNorm(4, 16),
            "layer_norm": lambda: nn.LayerNorm(16),
            "dropout": lambda: nn.Dropout(0.5),
            "alpha_dropout": lambda: nn.AlphaDropout(0.5),
            "rrelu": nn.RReLU,
            "pool": lambda: nn.Sequential(
                nn.Unflatten(1, (1, 4, 4)), nn.FractionalMaxPool2d(1, output_size=4), nn.Flatten()
            ),
            "cdist": lambda: _Function(lambda x: torch.cdist(x, x.detach())[:, :1] + x),
            "grid": lambda: _Function(_grid),
            "topk": lambda: _Function(lambda x: x.topk(16).values),
            "embedding_bag": lambda: _Function(lambda x: x * (x > 0)),
            "complex": lambda: _Function(lambda x: torch.fft.ifft(torch.fft.fft(x)).real),
        }
        return known[how]() if how in known else Odd(how)


class _Function(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function, self.inner = function, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.inner(x))


def _grid(x: Tensor) -> Tensor:
    image = x.view(-1, 1, 4, 4)
    theta = torch.eye(2, 3).expand(len(x), 2, 3)
    return F.grid_sample(
        image, F.affine_grid(theta, list(image.shape), align_corners=False), align_corners=False
    ).flatten(1)


def net(input: tuple[int, ...], classes: int, how: str, where: str = "above", hidden: object = ()) -> Blocks:  # noqa: ARG001
    """The odd module is the last below the cut, after `low`, or the first above it."""
    low, odd = nn.Sequential(nn.Flatten(), nn.Linear(input[-1] * input[-2], 16), nn.Tanh()), module(how)
    if where == "below":
        low.append(odd)
        return [("low", low), ("high", nn.Sequential(Cast(), nn.Linear(16, 16))), ("out", nn.Linear(16, classes))]
    return [("low", low), ("high", odd), ("out", nn.Sequential(Cast(), nn.Linear(16, classes)))]
