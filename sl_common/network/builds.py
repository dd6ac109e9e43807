"""Descriptions of a network's parts by which two builds are compared.

A description has the tensors, the modules, and some outputs for weights that both sides draw alike. Law: initial
weights do not count. Their last bits differ between processors, a network may draw them in its own way, and the
server's replace them. A module that is tried out here is unchanged afterwards.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor, nn

from sl_common.config.run_config import RunConfig
from sl_common.holdings import CLOSE, MAX_LAYOUT, MAX_PROBE, Build, apart
from sl_common.network.network import Network
from sl_common.seeds import numpy_generator
from sl_common.training.modules import buffers_untouched, seeded
from sl_common.training.segment import Alone

_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_SHOWN = 160  # characters shown of a line that differs
_WHOLE = 4  # the largest whole number of a drawn weight
_ROUNDINGS = 4  # units in the last place; for cuts of lower precision


def builds_of(config: RunConfig, network: Network, parts: Iterable[str], alone: Alone) -> tuple[Build, ...]:
    """Describe these parts of a network. `alone` is held while the process's one random generator is seeded."""
    return tuple(_build(part, network.part(part), _input(config, network, part), alone) for part in parts)


def _build(part: str, module: nn.Module, x: Tensor, alone: Alone) -> Build:
    state = module.state_dict()
    layout = _text(f"{name} {str(t.dtype).removeprefix('torch.')} {tuple(t.shape)}" for name, t in state.items())
    modules = _text(_line(name, one) for name, one in module.named_modules())
    with alone:
        probe = _probe(module, x)
    return Build(
        part=part,
        layout_sha256=hashlib.sha256(layout.encode()).digest(),
        layout=layout[:MAX_LAYOUT],
        modules_sha256=hashlib.sha256(modules.encode()).digest(),
        modules=modules[:MAX_LAYOUT],
        probe=probe,
    )


def _line(name: str, module: nn.Module) -> str:
    """Return a layer and its settings in one line, without the parts that differ from process to process."""
    try:
        settings = module.extra_repr()
    except Exception:  # raised by the user's own code
        settings = ""
    return _ADDRESS.sub("", f"{name}: {type(module).__name__}({settings})".replace("\n", " "))


def _text(lines: Iterable[str]) -> str:
    """Join the lines to a text that a frame can hold."""
    return "\n".join(lines).encode(errors="replace").decode()


def _input(config: RunConfig, network: Network, part: str) -> Tensor:
    """Return two samples, the same on any machine.

    All numbers are below 1, so a module that takes them for indices finds the first entry.
    """
    shape = config.input if part == "lower" else network.cut_shape
    x = torch.from_numpy(numpy_generator("build", "input", part).integers(0, 8, (2, *shape), dtype=np.int8)).float() / 8
    return x if part == "lower" else x.to(network.cut_dtype)


def _probe(module: nn.Module, x: Tensor) -> tuple[float, ...]:
    """Return some outputs in evaluation mode; empty if there are none that could be compared.

    A module whose second pass differs from its first draws numbers of its own or keeps state; its outputs cannot be
    compared.
    """
    try:
        with torch.no_grad(), _as_drawn(module), buffers_untouched(module):
            first, second = (_outputs(module, x) for _ in range(2))
    except Exception:  # any error of the modules; the other side's raise it too
        return ()
    return first if apart(first, second) is None else ()


def _outputs(module: nn.Module, x: Tensor) -> tuple[float, ...]:
    with seeded(0, torch.device("cpu")):
        found = module(x.clone())  # which it may change in place
    if not isinstance(found, Tensor) or found.is_complex() or not found.numel():
        return ()
    flat = found.detach().reshape(-1).to(torch.float64)
    places = numpy_generator("build", "outputs", flat.numel()).integers(flat.numel(), size=min(MAX_PROBE, flat.numel()))
    return tuple(flat[torch.from_numpy(places)].tolist())


@contextmanager
def _as_drawn(module: nn.Module) -> Iterator[None]:
    """Put the module in evaluation mode inside the context, with weights that are the same to the last bit anywhere."""
    modes = [(one, one.training) for one in module.modules()]
    weights = [(name, p, p.data) for name, p in module.named_parameters()]
    try:
        module.eval()
        for name, p, _ in weights:
            if p.is_floating_point():
                p.data = _drawn(name, p)
        yield
    finally:
        for _, p, before in weights:
            p.data = before
        for one, training in modes:
            one.training = training


def _drawn(name: str, p: Tensor) -> Tensor:
    """Return weights that few sums have to round: whole numbers times a power of two.

    Their size keeps the size of activations. Biases and norms' factors are between 0 and 1.
    """
    draw = numpy_generator("build", "weights", name)
    if p.dim() < 2 or not p.numel():
        numbers = torch.from_numpy(draw.integers(1, 8, p.numel(), dtype=np.int8, endpoint=True))
        return (numbers.float() / 8).view(p.shape).to(p.dtype)
    numbers = torch.from_numpy(draw.integers(-_WHOLE, _WHOLE, p.numel(), dtype=np.int8, endpoint=True))
    scale = 2.0 ** round(math.log2(math.sqrt(3 * p.shape[0] / p.numel()) / _WHOLE))
    return numbers.float().mul_(scale).view(p.shape).to(p.dtype)


def build_difference(theirs: Build, ours: Build, *, same_torch: bool, dtype: torch.dtype) -> str:
    """Return the difference between a client's build and the server's in words; empty if there is none.

    Another version of torch may describe a module differently: then the outputs alone decide. `dtype` is the cut's.
    """
    if theirs.layout_sha256 != ours.layout_sha256:
        return _first_line(theirs.layout, ours.layout)
    far = apart(theirs.probe, ours.probe, max(CLOSE, _ROUNDINGS * torch.finfo(dtype).eps))
    if theirs.modules_sha256 != ours.modules_sha256 and (same_torch or far is not None):
        return _first_line(theirs.modules, ours.modules)
    if far is None:
        return ""
    if len(theirs.probe) != len(ours.probe):
        counts = f"{len(theirs.probe)} numbers of its output, the server's {len(ours.probe)}"
        return f"for the same weights and input it gives {counts}"
    return f"for the same weights and input one of its outputs is {far[0]:.6g}, the server's is {far[1]:.6g}"


def is_release(version: str, other: str) -> bool:
    """Return True if two versions of torch differ at most in their compilation."""
    return version.partition("+")[0] == other.partition("+")[0]


def _first_line(theirs: str, ours: str) -> str:
    for one, other in zip_longest(theirs.split("\n"), ours.split("\n")):
        if one != other:
            return f"it has {_shown(one)}, the server's has {_shown(other)}"
    return f"they differ beyond the first {MAX_LAYOUT} characters of their descriptions"


def _shown(line: str | None) -> str:
    return "no more" if line is None else f"[{line[:_SHOWN]}]"
