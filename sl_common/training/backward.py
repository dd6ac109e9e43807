"""Backward passes by torch's autograd engine itself, in one piece or in two halves.

`torch.autograd.backward` imports sympy at its first use, half a second and 30 MB for symbolic shapes, and takes 0.1 ms
for each call. The halves are those of Qi et al., "Zero Bubble Pipeline Parallelism", ICLR 2024: first the gradients of
inputs, for which a peer waits, then those of weights, for which nobody waits. Every operation is the same as in a whole
pass, on the same numbers, so the bits are the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from sl_common.errors import WireError

# A private name of torch's; without it, torch.autograd.backward does the same.
_ENGINE = getattr(torch.autograd.Variable, "_execution_engine", None)
LARGE = 1 << 16  # numbers in a matrix; above this, its gradient is worth a call of its own
# Nodes that compute each of their gradients separately.
_PRODUCTS = ("ConvolutionBackward0", "AddmmBackward0", "MmBackward0")
_LEAF, _TRANSPOSED = "torch::autograd::AccumulateGrad", "TBackward0"


def backward_from(output: Tensor, grad: Tensor) -> None:
    """Add to the gradients of every leaf that `output` (…) was computed from; `grad` (…) is d loss/d output.

    Raise WireError if the two shapes differ.
    """
    if grad.shape != output.shape:  # autograd would broadcast, and sum over one dimension too many
        raise WireError(f"gradient has shape {tuple(grad.shape)}, what it is of has {tuple(output.shape)}")
    if _ENGINE is None:
        torch.autograd.backward(output, grad)
    else:
        _run(output, grad)


def backward_to(awaited: Tensor, loss: Tensor) -> Callable[[], None]:
    """Add to the gradients of the leaf `awaited` and of other leaves of `loss` (scalar), but large products' weights.

    Call the returned function once to add to those as well. Until then the graph stays in memory, and beside it the
    gradient of each such product's output.
    """
    if _takes_halves():
        return _first_half(awaited, loss)
    backward_from(loss, torch.ones_like(loss))
    return _nothing


def has_large_products(module: nn.Module) -> bool:
    """Return True if a backward pass in halves may pay: for a convolution, or a large matrix."""
    return any(p.dim() > 2 or (p.dim() == 2 and p.numel() >= LARGE) for p in module.parameters())


def _run(
    output: Tensor | GradientEdge, grad: Tensor, *, keep: bool = False, leaves: Sequence[Tensor] | tuple[()] = ()
) -> None:
    """Run the engine to these leaves alone, or to all."""
    assert _ENGINE is not None
    _ENGINE.run_backward((output,), (grad,), keep, False, tuple(leaves), allow_unreachable=True, accumulate_grad=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    """A node of the graph that multiplies by weights which no other node uses."""

    node: Any
    weights: list[Tensor]  # with its bias; no other node uses them
    arrived: list[Tensor | None] = field(default_factory=list)  # the gradient of its output


def _first_half(awaited: Tensor, loss: Tensor) -> Callable[[], None]:
    products, leaves = _products(loss.grad_fn, awaited)
    if not any(leaf is awaited for leaf in leaves):  # no gradient is awaited
        products = []
    for product in products:
        product.node.register_prehook(product.arrived.extend)
    late = {id(weight) for product in products for weight in product.weights}
    now = [leaf for leaf in leaves if id(leaf) not in late]  # never empty: an empty list would mean all leaves
    _run(loss, torch.ones_like(loss), keep=bool(products), leaves=now)

    def second_half() -> None:
        for product in products:
            if product.arrived and product.arrived[0] is not None:
                _run(GradientEdge(product.node, 0), product.arrived[0], leaves=product.weights)
        products.clear()

    return second_half


def _products(root: Any, awaited: Tensor) -> tuple[list[_Product], list[Tensor]]:
    """Return the products whose weights can wait, and all leaves of the graph."""
    nodes, uses = [root], Counter({root: 1})  # uses: edges that end at a node
    for node in nodes:  # the list grows meanwhile
        for child, _ in node.next_functions:
            if child is not None:
                if child not in uses:
                    nodes.append(child)
                uses[child] += 1
    products = []
    for node in nodes:
        if node.name() in _PRODUCTS:
            weights = [leaf for child, _ in node.next_functions if (leaf := _own(child, uses)) is not None]
            weights = [leaf for leaf in weights if leaf is not awaited]
            if any(leaf.dim() > 2 or leaf.numel() >= LARGE for leaf in weights):
                products.append(_Product(node, weights))
    return products, [node.variable for node in nodes if node.name() == _LEAF]


def _own(node: Any, uses: Counter[Any]) -> Tensor | None:
    """Return the leaf at the end of an edge, directly or through a transposition, if nothing else leads there."""
    if node is not None and uses[node] == 1 and node.name() == _TRANSPOSED:
        node = node.next_functions[0][0]
    return node.variable if node is not None and uses[node] == 1 and node.name() == _LEAF else None


def _nothing() -> None:
    """Do nothing: the whole pass was done before."""


@cache
def _takes_halves() -> bool:
    """Try whether this version of torch can run a backward pass in two halves."""
    if _ENGINE is None:
        return False
    x, weight = torch.ones(1, 1, 1, requires_grad=True), torch.full((1, 1, 1), 2.0, requires_grad=True)
    try:
        second_half = _first_half(x, nn.functional.conv1d(x, weight).sum())
        waits = weight.grad is None
        second_half()
    except (AttributeError, RuntimeError, TypeError):
        return False
    found = [leaf.grad.item() for leaf in (x, weight) if leaf.grad is not None]
    return waits and found == [2.0, 1.0]
