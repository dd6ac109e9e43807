"""Networks as users write them that hold more than float32 parameters of their own: for test_kinds.py, test_constants.py and test_ties.py."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Blocks = Sequence[tuple[str, nn.Module]]


class Holds(nn.Module):
    """Flattens; holds a tensor of any type, which it lets training see where that is possible."""

    def __init__(self, tensor: Tensor, *, learns: bool = False) -> None:
        super().__init__()
        if learns:
            self.held = nn.Parameter(tensor)
        else:
            self.register_buffer("held", tensor)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        if isinstance(self.held, nn.Parameter):
            return x * (self.held.abs() if self.held.is_complex() else self.held).to(x.dtype)
        return x


def some(dtype: torch.dtype, count: int, seed: int = 1) -> Tensor:
    """Numbers that the type has and float32 may not, none of them NaN or Inf."""
    draw = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(count, dtype=torch.complex128 if dtype.is_complex else torch.float64, generator=draw).to(
            dtype
        )
    if dtype == torch.bool:
        return torch.rand(count, generator=draw) < 0.5
    data = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=draw)
    return data.view(dtype)


def of_dtype(input: tuple[int, ...], classes: int, dtype: str = "complex64", learns: bool = False) -> Blocks:
    """A tensor of one type on either side of the cut."""
    n, kind = input[-1] * input[-2], getattr(torch, dtype)
    below, above = (Holds(some(kind, n, seed), learns=learns) for seed in (1, 2))
    return [("low", nn.Sequential(below, nn.Linear(n, n))), ("high", above), ("out", nn.Linear(n, classes))]


def of_all(input: tuple[int, ...], classes: int, dtype: str = "float64") -> Blocks:
    """All of it in one type, the activations at the cut as well."""
    n, kind = input[-1] * input[-2], getattr(torch, dtype)

    class To(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(kind)

    low = nn.Sequential(nn.Flatten(), To(), nn.Linear(n, 12, dtype=kind), nn.Tanh())
    return [("low", low), ("out", nn.Linear(12, classes, dtype=kind))]


def refused(input: tuple[int, ...], classes: int, what: str = "sparse") -> Blocks:
    """Holds what no run can carry."""
    n = input[-1] * input[-2]
    odd: nn.Module = nn.Flatten()
    with warnings.catch_warnings(action="ignore"):  # that torch is going to drop some of these
        odd = _odd(odd, what)
    return [("low", nn.Sequential(odd, nn.Linear(n, 8))), ("out", nn.Linear(8, classes))]


def _odd(odd: nn.Module, what: str) -> nn.Module:
    match what:
        case "sparse":
            odd.register_buffer("odd", torch.eye(3).to_sparse())
        case "meta":
            odd.register_buffer("odd", torch.empty(3, device="meta"))
        case "quantised":
            odd.register_buffer("odd", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8))
        case "expanded":
            odd.odd = nn.Parameter(torch.ones(1).expand(3))
        case "state":
            odd = _WithState()
        case dtype:
            odd.register_buffer("odd", torch.zeros(3).to(getattr(torch, dtype)))
    return odd


class _WithState(nn.Flatten):
    def get_extra_state(self) -> object:
        return {"odd": 1}

    def set_extra_state(self, state: object) -> None:
        pass


def views(input: tuple[int, ...], classes: int) -> Blocks:
    """Buffers that are no memory of their own, and a parameter that is a conjugate; a layer that takes its shape from its first batch."""
    n = input[-1] * input[-2]
    conjugate = Holds(some(torch.complex64, n).conj(), learns=True)
    low, high = nn.Sequential(conjugate, nn.LazyLinear(8)), nn.Sequential(nn.Linear(8, 8))
    for module in (low, high):
        module.register_buffer("wide", torch.arange(4.0).unsqueeze(1).expand(4, 5))
        module.register_buffer("negative", some(torch.complex64, 5).conj().imag)
        module.register_buffer("none", None)
        module.register_buffer("empty", torch.zeros(0, 3))
        module.register_buffer("scalar", torch.tensor(7))
        module.register_buffer("turned", torch.arange(6.0).view(2, 3).t())
    return [("low", low), ("high", high), ("out", nn.Linear(8, classes))]


class Masked(nn.Module):
    """Attention over the rows of an image with an additive mask, a buffer or a frozen parameter."""

    def __init__(self, tokens: int, dim: int, fill: float, *, frozen: bool) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(dim, 2, batch_first=True)
        mask = torch.triu(torch.full((tokens, tokens), fill), 1)
        if frozen:
            self.mask = nn.Parameter(mask, requires_grad=False)
        else:
            self.register_buffer("mask", mask)
        self.register_buffer("constant", torch.tensor([fill, float("nan"), 1e30, 1.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attn(x, x, x, attn_mask=self.mask, need_weights=False)[0]


class _Rows(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.squeeze(1)


class _Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


def masked(input: tuple[int, ...], classes: int, fill: str = "-inf", frozen: bool = False) -> Blocks:
    """Masks on both sides."""
    dim = input[-1]
    first, second = (Masked(input[-2], dim, float(fill), frozen=frozen) for _ in range(2))
    low = nn.Sequential(_Rows(), first)
    return [("low", low), ("high", second), ("out", nn.Sequential(_Last(), nn.Linear(dim, classes)))]


class Use(nn.Module):
    """A layer that others may use too."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.layer(x))


def tied(input: tuple[int, ...], classes: int, how: str = "module") -> Blocks:
    """Blocks a, b and c; a and b share something."""
    n = input[-1] * input[-2]
    a, b = nn.Linear(n, n), nn.Linear(n, n)
    match how:
        case "module":
            b = a
        case "parameter":
            b.weight = a.weight
        case "frozen":
            b.weight = a.weight.requires_grad_(False)
        case "view":
            b.weight.data = a.weight.data.t()
        case "part":
            b.bias.data = a.weight.data[0]
        case "columns":  # of one memory, and no number in common
            whole = torch.randn(n, 2 * n) / n
            a.weight.data, b.weight.data = whole[:, :n], whole[:, n:]
        case "buffer":
            b.register_buffer("seen", a.weight.data)
        case "constant":
            table = torch.rand(n)
            a.register_buffer("table", table)
            b.register_buffer("table", table)
        case "statistics":
            norm = nn.BatchNorm1d(n, affine=False)
            a, b = nn.Sequential(a, norm), nn.Sequential(b, norm)
    return [("flat", nn.Flatten()), ("a", Use(a)), ("b", Use(b)), ("out", nn.Linear(n, classes))]


class Recomputed(nn.Module):
    """Activation checkpointing in its older form."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=True)


class _Hooked(nn.Module):
    """Its backward pass works once, by a function of the user's own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out = self.inner(x)
        if out.requires_grad:
            out.register_hook(lambda grad: grad * 2)
        return out


class _InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(0.5).flatten(1)


def in_place(input: tuple[int, ...], classes: int) -> Blocks:
    """Changes its input, which wants no gradient, and has buffers of odd kinds that are nobody else's."""
    n = input[-1] * input[-2]
    first = _InPlace()
    first.register_buffer("own", torch.eye(3).to_sparse(), persistent=False)
    first.register_buffer("large", torch.zeros(2, dtype=torch.complex128), persistent=False)
    return [("low", nn.Sequential(first, nn.Linear(n, 300), nn.ReLU(inplace=True))), ("out", nn.Linear(300, classes))]


def recomputed(input: tuple[int, ...], classes: int, how: str = "reentrant", below: bool = False) -> Blocks:
    """A convolution whose pass is made again; `below` on the client's side too."""
    wrap = {"reentrant": Recomputed, "hooks": _Hooked}[how]
    inner = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten())
    first: nn.Module = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
    return [
        ("c1", wrap(first) if below else first),
        ("c2", wrap(inner)),
        ("out", nn.Linear(16 * input[-1] * input[-2], classes)),
    ]
