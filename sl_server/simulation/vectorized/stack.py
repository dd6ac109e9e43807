"""Many segments of one shape as one: each tensor is a slice of a tensor (C, …), and passes run over many slices at
once.

Law: a slice changes only by its own segment's steps and loads. The grouping of segments is chosen anew for each pass,
and changes only the last bits of a result.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from sl_common.training.backward import backward_from
from sl_common.training.optim import Optimizer
from sl_common.training.segment import Segment

Places = Sequence[int]  # of segments in the stack, ascending


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pass:
    """A forward pass of some of the segments, with the values that its backward pass needs."""

    places: Places
    x: Tensor  # (G, B, *input)
    weights: dict[str, Tensor]  # (G, …), leaves
    z: Tensor  # (G, B, *output)


class Stack:
    """Segments whose parameters become slices of this stack's tensors. Their own optimisers are no longer used."""

    def __init__(
        self,
        segments: Sequence[Segment],
        optimizer: Optimizer,
        input: Sequence[int],
        device: torch.device | str = "cpu",
    ) -> None:
        """Stack segments of one shape, without buffers and random draws, before any of them has taken a step.

        `input` is the shape of one sample.
        """
        self._device = torch.device(device)
        self._module = copy.deepcopy(segments[0].module)  # only its code is used
        named = [dict(segment.module.named_parameters()) for segment in segments]
        self._learns = {name: param.requires_grad for name, param in named[0].items()}
        self._weights = {
            name: torch.stack([params[name].detach() for params in named]).to(self._device) for name in named[0]
        }
        self._order = {name: tuple(range(weight.dim())) for name, weight in self._weights.items()}
        self._lay_out_as_gradients(torch.zeros(min(len(segments), 2), 2, *input))
        for place, (segment, params) in enumerate(zip(segments, named, strict=True)):
            segment.device = self._device
            for name, param in params.items():
                param.data = self._weights[name][place]
        self._steps = Steps(optimizer, {name: self._as_it_lies(name, self._weights[name]) for name in self._trained()})

    def _trained(self) -> list[str]:
        return [name for name, learns in self._learns.items() if learns]

    def _lay_out_as_gradients(self, x: Tensor) -> None:
        """Lay weights out in memory as torch lays out their gradients: transposing in each step can cost as much as
        the rest."""
        passed = self.forward(range(len(x)), x)
        leaves = [passed.weights[name] for name in self._trained()]
        gradients = torch.autograd.grad(passed.z, leaves, torch.zeros_like(passed.z), allow_unused=True)
        for name, gradient in zip(self._trained(), gradients, strict=True):
            if gradient is not None:
                dims = sorted(range(1, gradient.dim()), key=lambda dim: gradient.stride()[dim], reverse=True)
                order = self._order[name] = (0, *dims)
                back = [order.index(dim) for dim in range(len(order))]
                self._weights[name] = self._as_it_lies(name, self._weights[name]).contiguous().permute(back)

    def _as_it_lies(self, name: str, weight: Tensor) -> Tensor:
        return weight.detach().permute(self._order[name])

    def age(self, place: int) -> int:
        """Return the key that segments must share to step together."""
        return self._steps.age(place)

    def forward(self, places: Places, x: Tensor, *, train: bool = True, grad: bool = True) -> Pass:
        """Return outputs for x (G, B, *input), whose row g is for segment places[g]. They must have one age if they
        are to learn."""
        if self._module.training != train:
            self._module.train(train)
        weights = {
            name: _picked(stacked, places).data.requires_grad_(grad and self._learns[name])
            for name, stacked in self._weights.items()
        }
        x = x.to(self._device, non_blocking=True)
        with torch.set_grad_enabled(grad):
            return Pass(places=places, x=x, weights=weights, z=self._outputs(weights, x))

    def _outputs(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        def one(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self._module, weights, (x,))  # type: ignore[no-any-return]

        if len(x) == 1:  # vmap costs more than the pass
            return one({name: tensor[0] for name, tensor in weights.items()}, x[0]).unsqueeze(0)
        return vmap(one)(weights, x)

    def learn(self, passed: Pass, dz: Mapping[int, Tensor], lr: float) -> None:
        """Run backward from d loss/dz (B, *output) by place, and one step of the segments that have one.

        For a part of the segments the forward pass is made again.
        """
        if len(dz) < len(passed.places):
            among = [row for row, place in enumerate(passed.places) if place in dz]
            passed = self.forward([passed.places[row] for row in among], passed.x[among])
        gradient = torch.stack([dz[place] for place in passed.places]).to(self._device)
        backward_from(passed.z, gradient)
        leaves = {}
        for name in self._trained():
            leaf = leaves[name] = self._as_it_lies(name, passed.weights[name])
            grad = passed.weights[name].grad
            leaf.grad = None if grad is None else self._as_it_lies(name, grad)
        self._steps.step(passed.places, leaves, lr)
        if _span(passed.places) is None:  # the pass ran on copies
            with torch.no_grad():
                for name, weight in passed.weights.items():
                    self._weights[name][torch.tensor(passed.places)] = weight


class Steps:
    """An elementwise optimiser over slices of tensors, with the state and the age of each slice: the steps it has
    taken."""

    def __init__(self, optimizer: Optimizer, weights: Mapping[str, Tensor]) -> None:
        self._optimizer = optimizer
        self._weights = weights
        self._state: dict[str, dict[str, Tensor]] = {name: {} for name in weights}  # (C, …)
        self._taken = [0] * max((len(t) for t in weights.values()), default=0)
        self._counts = False  # True: the rule depends on the number of steps taken

    def age(self, place: int) -> int:
        """Return the age of a slice; slices of one age step together. Most rules only distinguish the first step."""
        return self._taken[place] if self._counts else min(self._taken[place], 1)

    def step(self, places: Places, leaves: Mapping[str, Tensor], lr: float) -> None:
        """Step slices of one age once, in place on `leaves` (G, …), by the gradients that are given."""
        taken = self._taken[places[0]]
        params = cast(Iterable[nn.Parameter], leaves.values())
        rule = self._optimizer.make(params, fused=True)  # the cost is reading and writing memory
        for group in rule.param_groups:
            group["lr"] = lr
        given = {
            name: {key: _picked(t, places) for key, t in self._state[name].items()} if taken else {} for name in leaves
        }
        for name, leaf in leaves.items():
            if given[name]:
                rule.state[leaf] = {"step": torch.tensor(float(taken), device=leaf.device), **given[name]}
        rule.step()
        for name, leaf in leaves.items():
            for key, value in rule.state[leaf].items():
                self._keep(name, key, places, value, given[name].get(key))
        for place in places:
            self._taken[place] += 1

    def _keep(self, name: str, key: str, places: Places, value: object, given: Tensor | None) -> None:
        if not isinstance(value, Tensor):
            return
        if key == "step":  # torch's name for it
            self._counts = True
            return
        if value is given and _span(places) is not None:  # changed in place
            return
        if key not in self._state[name]:
            self._state[name][key] = torch.zeros_like(self._weights[name])
        self._state[name][key][torch.tensor(places)] = value


def _span(places: Places) -> slice | None:
    """Return these places as a slice; None if other places lie between them."""
    first, last = places[0], places[-1]
    return slice(first, last + 1) if last - first + 1 == len(places) else None


def _picked(stacked: Tensor, places: Places) -> Tensor:
    """Return (C, …) -> (G, …): a view where the places are adjacent, otherwise a copy."""
    span = _span(places)
    return stacked[torch.tensor(places)] if span is None else stacked[span]
