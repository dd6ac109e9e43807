"""A segment: a module, its optimiser and the few verbs that a learner or a head may use on it.

Learners touch torch only through `forward`, `backward` and `step`; a shell may wrap these with a timer (`span`).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sl_common.errors import ConfigError, WireError, first_line
from sl_common.kinds import bits
from sl_common.seeds import Draw, seed_of
from sl_common.tensors import StateDict, all_finite, check_state, constants_of, copy_state, state_digest
from sl_common.training.backward import backward_from, backward_to, has_large_products
from sl_common.training.optim import Optimizer

Tree = Any  # what sl_common.tree can write: dicts, lists and tuples of plain values, bytes and tensors
SpanFactory = Callable[[str], AbstractContextManager[object]]
Alone = AbstractContextManager[object]
_NOBODY: Alone = contextlib.nullcontext()
_Result = TypeVar("_Result")


def no_span(_phase: str) -> AbstractContextManager[object]:
    """Measures nothing."""
    return contextlib.nullcontext()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws inside come from `seed`; the generators outside are left as they were."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


@contextmanager
def buffers_untouched(module: nn.Module) -> Iterator[Callable[[], list[Tensor]]]:
    """Inside, BatchNorm in train mode uses batch statistics; afterwards every buffer (counters too) is what it was.

    Copies take the buffers' places meanwhile, so that nothing that autograd saved is written in place. What it yields tells, inside, which
    buffers would have changed.
    """
    originals = [(m, name, b) for m in module.modules() for name, b in m._buffers.items() if b is not None]
    copies = {id(b): b.clone() for _, _, b in originals}  # one of each, in whatever places it is
    versions = {key: copied._version for key, copied in copies.items()}

    def changed() -> list[Tensor]:
        return [b for m, name, b in originals if _differs(m._buffers[name], copies[id(b)], b, versions[id(b)])]

    for owner, name, buffer in originals:
        owner._buffers[name] = copies[id(buffer)]
    try:
        yield changed
    finally:
        for owner, name, buffer in originals:
            owner._buffers[name] = buffer


def _differs(now: Tensor | None, copied: Tensor, before: Tensor, version: int) -> bool:
    if now is not copied or copied._version != version:
        return True
    plain = copied.layout == torch.strided and not copied.is_meta and not copied.is_quantized
    return plain and not torch.equal(bits(copied), bits(before))


class Segment:
    """One part of a network on one participant. The optimiser's state persists for the run, whatever weights are loaded."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        device: torch.device | str = "cpu",
        span: SpanFactory = no_span,
        alone: Alone = _NOBODY,
        halves: bool = True,
        channels_last: bool = False,
    ) -> None:
        """`alone`: held while the process's one generator is seeded for a pass, by whoever uses segments in several threads. `halves`: a
        backward pass may be split where somebody waits for the gradient of its input. `channels_last`: images lie in memory as (B, H, W, C)
        inside, which changes last bits; states, digests and gradients of inputs are as ever."""
        self._alone = alone
        self.device = torch.device(device)
        self.module = module.to(self.device)
        self._channels_last = channels_last
        if channels_last:
            self.module = self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.span = span
        params = [p for p in module.parameters() if p.requires_grad]
        self.optimizer = optimizer.make(params) if params else None
        self._draws = draws_random_numbers(module)
        self._splits = halves and has_large_products(self.module)
        self._second_half: Callable[[], None] | None = None  # of the last backward pass, if it was put off
        self._stepping = False  # the optimiser's step is still to be taken
        self._buffered = [m for m in module.modules() if m._buffers]
        self._constants = constants_of(self.module.state_dict())  # numbers that are not finite from the beginning

    def forward(
        self, x: Tensor, draw: Draw = (), *, train: bool = True, grad: bool = True, keep_buffers: bool = False
    ) -> Tensor:
        """Module output for x (B, …).

        `draw` names, and seeds, whatever the module draws; in evaluation it draws nothing. With `keep_buffers` BatchNorm takes the batch's
        statistics and leaves its own as they were.
        """
        self.settle()
        if self.module.training != train:
            self.module.train(train)
        untouched = buffers_untouched(self.module) if keep_buffers else contextlib.nullcontext()
        with self.span("forward"), torch.set_grad_enabled(grad), untouched:
            x = x.to(self.device, non_blocking=True)
            if self._channels_last and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            if not (train and self._draws):
                return self.module(x)  # type: ignore[no-any-return]
            with self._alone, seeded(seed_of(*draw), self.device):
                return self.module(x)  # type: ignore[no-any-return]

    def backward(self, output: Tensor, grad: Tensor | None = None, *, soon: Tensor | None = None) -> None:
        """Fill the gradients of this segment from d loss/d output (or from a scalar loss), replacing older ones.

        `soon`: a leaf that the scalar loss was computed from. When this returns, its gradient is there; those of large weights are computed
        before the step, with the same bits.
        """
        self.settle()
        with self.span("backward"):
            self.clear()
            if not output.requires_grad:
                return
            if grad is None and output.dim():
                raise ConfigError(
                    "no gradient comes back for the output of the lower segment: what takes it (the head, or an auxiliary network made of its "
                    "blocks) detaches its input"
                )
            if soon is not None and self._splits:
                self._second_half = _in_halves(lambda: backward_to(soon, output))
            else:
                backward_from(output, torch.ones_like(output) if grad is None else grad.to(output.device))

    def gradient(self, loss: Tensor, z: Tensor, *, differentiable: bool = False) -> Tensor:
        """d loss/dz alone, shaped as z: nothing is computed or kept for this segment's own parameters.

        `differentiable`: with a graph, for a loss on the gradient itself.
        """
        with self.span("backward"):
            (gradient,) = torch.autograd.grad(loss, z, create_graph=differentiable)
        return gradient

    def buffers(self) -> Callable[[], None]:
        """Remember the buffers as they are; what is returned puts them back, and drops a backward pass whose step was not taken."""
        self.settle()
        before = [(m, name, b, b.clone()) for m in self._buffered for name, b in m._buffers.items() if b is not None]

        def back() -> None:
            self._stepping, self._second_half = False, None
            self.clear()
            with torch.no_grad():
                for owner, name, buffer, values in before:
                    owner._buffers[name] = buffer.copy_(values)

        return back

    def clear(self) -> None:
        """Forget the gradients of the last step; `backward` would, but a learner that waits has the time now."""
        self.settle()
        self._second_half = None
        if self.optimizer is not None:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One optimiser step on the gradients of the last backward pass."""
        second_half, self._second_half = self._second_half, None
        if second_half is not None:
            with self.span("backward"):
                _in_halves(second_half)
        with self.span("step"):
            if self.optimizer is not None:
                self.optimizer.step()

    def step_later(self) -> None:
        """The same, but not before `settle`, or whatever next looks at this segment: a reply need not wait for it."""
        self._stepping = True

    def settle(self) -> None:
        """Take the step that was put off, if there is one."""
        if self._stepping:
            self._stepping = False
            self.step()

    def set_eps(self, eps: float) -> None:
        """Of an Adam, from the next step on."""
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["eps"] = eps

    def set_lr(self, lr: float) -> None:
        """The learning rate of this round."""
        self.settle()
        if self.optimizer is not None:
            for group in self.optimizer.param_groups:
                group["lr"] = lr

    def state(self) -> dict[str, Tensor]:
        """A copy of parameters and buffers on the CPU."""
        self.settle()
        return copy_state(self.module.state_dict())

    def digest(self) -> bytes:
        """Fingerprint of parameters and buffers."""
        self.settle()
        return state_digest(self.module.state_dict())

    def load(self, state: StateDict, what: str = "a segment") -> None:
        """Copy weights in place; the optimiser's state stays. Raises WireError if they do not fit or are not finite where the module was when
        this segment was made."""
        self.settle()
        own = self.module.state_dict()
        check_state(state, {name: (t.dtype, tuple(t.shape)) for name, t in own.items()}, what, self._constants)
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])

    def snapshot(self) -> Tree:
        """Everything that it goes on from: weights, buffers, the optimiser's state."""
        self.settle()
        optimizer = None if self.optimizer is None else copy.deepcopy(self.optimizer.state_dict())
        return {"module": self.state(), "optimizer": optimizer}

    def restore(self, tree: Tree) -> None:
        """Go back to a snapshot of a segment like this one. Raises WireError if the weights do not fit."""
        self._stepping, self._second_half = False, None
        self.load(tree["module"], "a snapshot")
        if self.optimizer is not None:
            self.clear()
            _check_optimizer(tree["optimizer"], self.optimizer)
            self.optimizer.load_state_dict(copy.deepcopy(tree["optimizer"]))

    def check(self, part: str) -> None:
        """Raise WireError unless what is written of it now is what is read again."""
        self.settle()
        own = self.module.state_dict()
        check_state(own, {name: (t.dtype, tuple(t.shape)) for name, t in own.items()}, part, self._constants)

    @property
    def nbytes(self) -> int:
        """Bytes of parameters and buffers."""
        return sum(t.numel() * t.element_size() for t in self.module.state_dict().values())


def _in_halves(work: Callable[[], _Result]) -> _Result:
    """Half of a backward pass. Raises ConfigError, with the key that avoids it, where torch cannot: the trial before the run had other data."""
    try:
        return work()
    except torch.cuda.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ConfigError(
            f"server.reply_first = true: the head's backward pass cannot be made in two halves ({first_line(error)}); set server.reply_first = false"
        ) from error


class Bank:
    """The segments that one participant holds, by part; on the server a part may have a copy for each client.

    A copy is made when its client first needs one, from the weights that were last loaded for all.
    """

    def __init__(self, make: dict[str, Callable[[], Segment]], per_client: frozenset[str] = frozenset()) -> None:
        self._make = make
        self._per_client = per_client
        self._shared = {part: make_segment() for part, make_segment in make.items()}
        self._copies: dict[tuple[str, int], Segment] = {}
        self._used: dict[Segment, None] = {}  # since `settle`, in order

    def __contains__(self, part: str) -> bool:
        return part in self._make

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts held here."""
        return tuple(self._make)

    def get(self, part: str, client: int | None = None) -> Segment:
        """The segment of a part; where each client has a copy, that client's."""
        segment = self._find(part, client)
        self._used[segment] = None
        return segment

    def _find(self, part: str, client: int | None) -> Segment:
        if part not in self._per_client or client is None:
            return self._shared[part]
        key = (part, client)
        if key not in self._copies:
            self._copies[key] = self._make[part]()
            self._copies[key].load(self._shared[part].state(), part)
        return self._copies[key]

    def copies(self, part: str) -> dict[int, Segment]:
        """The per-client copies of a part, by client; empty if there is one for all."""
        return {client: segment for (p, client), segment in sorted(self._copies.items()) if p == part}

    def is_per_client(self, part: str) -> bool:
        """True if every client has a copy of this part here."""
        return part in self._per_client

    def load(self, part: str, state: StateDict) -> None:
        """Load weights into a part, every copy of it included."""
        for segment in [self._shared[part], *self.copies(part).values()]:
            segment.load(state, part)

    def settle(self) -> None:
        """Take all steps that were put off. Of a thousand copies only those that were used are looked at."""
        used, self._used = self._used, {}
        for segment in used:
            segment.settle()

    def forget(self, client: int) -> None:
        """Drop a client's copies."""
        for key in [key for key in self._copies if key[1] == client]:
            del self._copies[key]

    def snapshot(self) -> Tree:
        """All segments."""
        return {
            "shared": {part: segment.snapshot() for part, segment in self._shared.items()},
            "copies": {key: segment.snapshot() for key, segment in self._copies.items()},
        }

    def restore(self, tree: Tree) -> None:
        """Go back to a snapshot of a bank like this one. Raises WireError if it has other parts."""
        if tree["shared"].keys() != self._shared.keys() or {part for part, _ in tree["copies"]} - self._per_client:
            raise WireError(f"a snapshot of {sorted(tree['shared'])}, this side holds {sorted(self._shared)}")
        for part, snapshot in tree["shared"].items():
            self._shared[part].restore(snapshot)
        self._copies, self._used = {}, {}
        for (part, client), snapshot in tree["copies"].items():
            self.get(part, client).restore(snapshot)


_FREE = {"lr", "foreach", "fused", "capturable", "differentiable"}  # set for each round, or by the machine


def _check_optimizer(saved: Tree, own: torch.optim.Optimizer) -> None:
    """Raise WireError unless a snapshot is of an optimiser like this one: torch itself looks at no shape and no option."""
    (group,), state = own.param_groups, saved["state"]
    (written,) = saved["param_groups"]
    options = own.state_dict()["param_groups"][0]
    if any(written[name] != options[name] for name in options.keys() - _FREE) or written.keys() != options.keys():
        raise WireError(f"a snapshot of an optimiser with {written}, this run has {options}")
    for number, moments in state.items():
        shape = group["params"][number].shape
        for name, moment in moments.items():
            scalar = name == "step" and not isinstance(moment, Tensor | str)
            if (
                moment is None
                or scalar
                or (isinstance(moment, Tensor) and moment.shape in (shape, ()) and all_finite(moment))
            ):
                continue
            raise WireError(
                f"a snapshot of an optimiser whose {name} of parameter {number} is not one of shape {tuple(shape)}"
            )


_DRAWING = (nn.modules.dropout._DropoutNd, nn.RReLU, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def draws_random_numbers(module: nn.Module) -> bool:
    """True if a forward pass may draw: it has dropout, or code of the user's that we can't look into."""
    return any(
        not type(m).__module__.startswith("torch.nn.")
        or isinstance(m, _DRAWING)
        or (isinstance(dropout := getattr(m, "dropout", 0.0), float) and dropout > 0)
        for m in module.modules()
    )
