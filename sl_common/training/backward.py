"""The engine of torch's autograd without what torch.autograd.backward does before it, and a backward pass in two halves.

The former imports sympy at its first use, half a second and 30 MB for shapes that are symbols, and takes 0.1 ms for each call. The
halves are those of Qi et al., "Zero Bubble Pipeline Parallelism", ICLR 2024: gradients of inputs, for which somebody waits, and those of
weights, for which nobody does. Every operation is the one that a whole pass would do, on the same numbers: the bits are the same.
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

# torch's own, by a name that torch may take back: then the long way is taken
_ENGINE = getattr(torch.autograd.Variable, "_execution_engine", None)
LARGE = 1 << 16  # numbers of a matrix from which its gradient is worth a call of its own
_PRODUCTS = ("ConvolutionBackward0", "AddmmBackward0", "MmBackward0")  # that compute each of their gradients by itself
_LEAF, _TRANSPOSED = "torch::autograd::AccumulateGrad", "TBackward0"


def backward_from(output: Tensor, grad: Tensor) -> None:
    """Add to the gradients of all that `output` (…) was computed from, where d loss/d output is `grad` (…). Raises WireError if they differ in shape."""
    if grad.shape != output.shape:  # autograd would sum over a dimension too many
        raise WireError(f"gradient has shape {tuple(grad.shape)}, what it is of has {tuple(output.shape)}")
    if _ENGINE is None:
        torch.autograd.backward(output, grad)
    else:
        _run(output, grad)


def backward_to(soon: Tensor, loss: Tensor) -> Callable[[], None]:
    """Add to the gradients of `soon`, a leaf, and of all other leaves of `loss` (scalar) but the weights of large products; what is returned
    adds to these, once. Until then the graph stays, and beside it the gradient of each such product's output."""
    if _takes_halves():
        return _first_half(soon, loss)
    backward_from(loss, torch.ones_like(loss))
    return _nothing


def has_large_products(module: nn.Module) -> bool:
    """Whether some of its weights may be worth a backward pass in halves: a convolution's, or a large matrix."""
    return any(p.dim() > 2 or (p.dim() == 2 and p.numel() >= LARGE) for p in module.parameters())


def _run(
    output: Tensor | GradientEdge, grad: Tensor, *, keep: bool = False, leaves: Sequence[Tensor] | tuple[()] = ()
) -> None:
    """To these leaves alone, or to all."""
    assert _ENGINE is not None
    _ENGINE.run_backward((output,), (grad,), keep, False, tuple(leaves), allow_unreachable=True, accumulate_grad=True)


@dataclass(frozen=True, slots=True, eq=False)
class _Product:
    """A node of the graph that multiplies by weights of its own."""

    node: Any
    weights: list[Tensor]  # with its bias; no other node uses them
    arrived: list[Tensor | None] = field(default_factory=list)  # the gradient of its output


def _first_half(soon: Tensor, loss: Tensor) -> Callable[[], None]:
    products, leaves = _products(loss.grad_fn, soon)
    if not any(leaf is soon for leaf in leaves):  # nobody waits for anything
        products = []
    for product in products:
        product.node.register_prehook(product.arrived.extend)
    late = {id(weight) for product in products for weight in product.weights}
    now = [leaf for leaf in leaves if id(leaf) not in late]  # never empty, which would mean all
    _run(loss, torch.ones_like(loss), keep=bool(products), leaves=now)

    def second_half() -> None:
        for product in products:
            if product.arrived and product.arrived[0] is not None:
                _run(GradientEdge(product.node, 0), product.arrived[0], leaves=product.weights)
        products.clear()

    return second_half


def _products(root: Any, soon: Tensor) -> tuple[list[_Product], list[Tensor]]:
    """Those whose weights can wait, and all leaves of the graph."""
    nodes, uses = [root], Counter({root: 1})  # uses: edges that end at a node
    for node in nodes:  # grows
        for child, _ in node.next_functions:
            if child is not None:
                if child not in uses:
                    nodes.append(child)
                uses[child] += 1
    products = []
    for node in nodes:
        if node.name() in _PRODUCTS:
            weights = [leaf for child, _ in node.next_functions if (leaf := _own(child, uses)) is not None]
            weights = [leaf for leaf in weights if leaf is not soon]
            if any(leaf.dim() > 2 or leaf.numel() >= LARGE for leaf in weights):
                products.append(_Product(node, weights))
    return products, [node.variable for node in nodes if node.name() == _LEAF]


def _own(node: Any, uses: Counter[Any]) -> Tensor | None:
    """The leaf at the end of an edge, directly or through a transposition, if nothing else leads there."""
    if node is not None and uses[node] == 1 and node.name() == _TRANSPOSED:
        node = node.next_functions[0][0]
    return node.variable if node is not None and uses[node] == 1 and node.name() == _LEAF else None


def _nothing() -> None:
    """All was done at once."""


@cache
def _takes_halves() -> bool:
    """Whether this torch can: it is tried."""
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
