"""Named networks as lists of blocks, and the cut between them.

A model function returns its blocks in order: `(name, module)` pairs, or modules alone. The unsplit network is
`nn.Sequential` over them; the lower segment is the first `cut` blocks, the head the rest. Names stay the same on both
sides, so the two state dicts together are the unsplit network's.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import nn

from sl_common.aside import settings_kept
from sl_common.errors import ConfigError
from sl_common.imports import is_user_code, load_function
from sl_common.models.alexnet import alexnet
from sl_common.models.cnn import cnn
from sl_common.models.convnets import cnn_emnist, cnn_lrn
from sl_common.models.mlp import mlp
from sl_common.models.resnet import resnet16, resnet18, resnet34
from sl_common.models.vgg import vgg11, vgg13, vgg16, vgg19
from sl_common.seeds import seed_of
from sl_common.suggestions import did_you_mean
from sl_common.training.modules import seeded

Block = tuple[str, nn.Module]
MODELS: dict[str, Callable[..., Sequence[Block | nn.Module]]] = {
    "mlp": mlp,
    "cnn": cnn,
    "cnn_lrn": cnn_lrn,
    "cnn_emnist": cnn_emnist,
    "alexnet": alexnet,
    "resnet16": resnet16,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
}


def build(
    name: str,
    *,
    input: Sequence[int],
    classes: int,
    args: dict[str, Any],
    seed: int,
    allowed: Collection[str] | None = None,
    hollow: bool = False,
) -> list[Block]:
    """Return the blocks of a model, initialised from `seed` alone.

    `input` is the shape of one sample (C, H, W). `allowed` lists the packages that the user's own code may come from
    (None: any). With `hollow` the blocks are made without memory, on the meta device, for `fill`; not for the user's
    own code, which may not support it. Raise ConfigError for an unknown name, arguments that the function does not
    take, or a result that is not a list of blocks.
    """
    function = _find(name, allowed)
    offered = {"input": tuple(input), "classes": classes, **args}
    try:
        inspect.signature(function).bind(**offered)
    except TypeError as error:
        raise ConfigError(f"model.args for {name!r}: {error}; it takes {inspect.signature(function)}") from error
    device = torch.device("meta" if hollow else "cpu")
    with settings_kept(), seeded(seed_of(seed, "init"), torch.device("cpu")):
        try:
            with device:
                blocks = function(**offered)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:  # from the user's code, or arguments of a wrong type
            raise ConfigError(
                f"model {name!r} cannot be made with input {tuple(input)}, {classes} classes, args {args}: {error!r}"
            ) from error
    return _named(blocks, name)


def _find(name: str, allowed: Collection[str] | None) -> Callable[..., Sequence[Block | nn.Module]]:
    if is_user_code(name):
        with settings_kept():
            return load_function(name, allowed, "model.name", takes=("input", "classes"))
    if name in MODELS:
        return MODELS[name]
    hint = did_you_mean(name, MODELS)
    raise ConfigError(
        f"model.name = {name!r}: unknown model{hint} (known: {', '.join(MODELS)}, or package.module:function)"
    )


def fill(first: nn.Module, seed: int) -> None:
    """Give memory to the first blocks of a hollow built-in model, with the values that `build` draws from `seed`.

    Each of torch's layers draws its own when it is made, and again when it is reset, and built-in models make their
    layers in the order of their modules.
    """
    with seeded(seed_of(seed, "init"), torch.device("cpu")):
        for module in first.modules():
            weights, buffers = (list(of(recurse=False)) for of in (module.named_parameters, module.named_buffers))
            for name, t in weights:  # to_empty would import torch's compiler
                setattr(module, name, nn.Parameter(torch.empty(t.shape, dtype=t.dtype), t.requires_grad))
            for name, t in buffers:
                setattr(module, name, torch.empty(t.shape, dtype=t.dtype))
            if weights or buffers:
                module.reset_parameters()  # type: ignore[operator]


def _named(blocks: object, name: str) -> list[Block]:
    if not isinstance(blocks, (list, tuple)) or len(blocks) < 2:
        raise ConfigError(f"model {name!r} must return a list of at least 2 blocks, got {type(blocks).__name__}")
    named: list[Block] = []
    for index, block in enumerate(blocks):
        label, module = block if isinstance(block, tuple) and len(block) == 2 else (f"block{index}", block)
        if not isinstance(module, nn.Module) or not isinstance(label, str) or not label.isidentifier():
            raise ConfigError(
                f"model {name!r}: block {index} must be a module or (identifier, module), got {block!r:.80}"
            )
        named.append((label, module))
    if len({label for label, _ in named}) < len(named):
        raise ConfigError(f"model {name!r}: block names must differ, got {[label for label, _ in named]}")
    return named


def cut_index(blocks: Sequence[Block], cut: int | str) -> int:
    """Return the number of blocks on the client: `cut` itself, or up to and including the block of that name.

    Raise ConfigError if the model has no such cut.
    """
    names = [name for name, _ in blocks]
    if isinstance(cut, str):
        if cut not in names[:-1]:
            hint = did_you_mean(cut, names[:-1])
            raise ConfigError(f"model.cut = {cut!r}: no such cut{hint} (cut after one of: {', '.join(names[:-1])})")
        return names.index(cut) + 1
    if not 1 <= cut < len(names):
        raise ConfigError(
            f"model.cut = {cut}: outside the model, which has {len(names)} blocks; cut must be 1 to {len(names) - 1}"
        )
    return cut


def split_blocks(blocks: Sequence[Block], cut: int | str) -> tuple[nn.Sequential, nn.Sequential]:
    """Return (lower, head): the modules before and after the cut. Raise ConfigError if it is outside the model."""
    index = cut_index(blocks, cut)
    return join(blocks[:index]), join(blocks[index:])


def join(blocks: Sequence[Block]) -> nn.Sequential:
    """Return the blocks as one module."""
    return nn.Sequential(OrderedDict(blocks))
