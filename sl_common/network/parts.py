"""The modules of a network, made from a configuration: its blocks, and the learner's auxiliary network."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_common.imports import is_user_code
from sl_common.models import Block, build, cut_index, join
from sl_common.models.auxiliary import Fit
from sl_common.network.contents import check_contents, materialise_views
from sl_common.network.trial import initialise
from sl_common.seeds import seed_of
from sl_common.training.modules import buffers_untouched, seeded


def blocks_of(config: RunConfig, seed: int, allowed: Collection[str] | None, *, hollow: bool = False) -> list[Block]:
    """Return all blocks of the network, initialised from `seed`. Raise ConfigError if the model cannot be made."""
    name, args, shape = config.model.name, config.model.args, config.input
    blocks = build(name, input=shape, classes=config.classes, args=args, seed=seed, allowed=allowed, hollow=hollow)
    if is_user_code(name):
        initialise(blocks, config, seed_of(seed, "init", "lazy"))
        check_contents(join(blocks), name)
        materialise_views(join(blocks))
    return blocks


def outline(config: RunConfig) -> dict[str, nn.Module]:
    """Return lower segment and head of a built-in model without memory, for their sizes.

    To run them would import torch's compiler.
    """
    blocks = blocks_of(config, 0, None, hollow=True)
    cut = cut_index(blocks, config.model.cut)
    return {"lower": join(blocks[:cut]), "head": join(blocks[cut:])}


def nbytes_of_blocks(blocks: list[Block]) -> int:
    """Return the bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for _, block in blocks for t in block.state_dict().values())


def auxiliary_fit(config: RunConfig, cut_shape: tuple[int, ...], cut: int, allowed: Collection[str] | None) -> Fit:
    """Return the requirements of an auxiliary network at a cut."""
    seed = seed_of(config.run.seed, "init", "aux", "head")
    return Fit(
        cut=cut_shape,
        input=config.input,
        classes=config.classes,
        head=lambda: blocks_of(config, seed, allowed)[cut:],
    )


def make_auxiliary(
    config: RunConfig, z: Tensor, place: int, allowed: Collection[str] | None, fits: Callable[[int], None]
) -> nn.Module | None:
    """Return the learner's auxiliary network, if it has one, tried out on the cut's activations.

    Made from a seed of its own. `fits` is called first with its bytes.
    """
    chosen = getattr(config.protocol.learner, "aux", None)
    if chosen is None:
        return None
    cut, wanted = tuple(z.shape[1:]), config.input
    fit = auxiliary_fit(config, cut, place, allowed)
    try:
        fits(chosen.nbytes(fit))
        with seeded(seed_of(config.run.seed, "init", "aux"), torch.device("cpu")):
            aux: nn.Module = chosen.make(fit)
        with buffers_untouched(aux):
            found = tuple(aux(z).shape[1:])
    except ConfigError as error:
        raise ConfigError(f"protocol.learner.{error}") from error
    except Exception as error:  # any error of the modules
        raise ConfigError(f"protocol.learner.aux: does not fit activations {cut}: {error}") from error
    expected = (config.classes,) if chosen.predicts else wanted
    if found != expected:
        raise ConfigError(f"protocol.learner.aux: gives {found} per sample, expected {expected}")
    return aux
