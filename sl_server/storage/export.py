"""Join the parts that a run left into the state dict of the unsplit network."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from sl_common.errors import ConfigError
from sl_common.host.files import write_atomically
from sl_common.models import join
from sl_common.network.network import Network
from sl_common.tensors import copy_state
from sl_server.storage.trained import config_of, read_weights
from sl_server.storage.weight_set import read_weights_of


def export_run(
    directory: Path, *, to: Path | None = None, lower: Path | None = None, head: Path | None = None
) -> tuple[Path, int]:
    """Write the whole network's state dict; return its path and the number of tensors.

    Raises ConfigError if a part is missing or does not fit the model that `config.json` names.
    """
    config = config_of(directory)
    network = Network.build(config)
    chosen = lower or directory / "lower.safetensors", head or directory / "head.safetensors"
    listed = _listed(directory, chosen)
    heads = " or ".join(str(path) for path in sorted(directory.glob("head-*.safetensors"))) or "FILE"
    state = {
        **_read(chosen[0], listed, "lower", "--lower FILE (sl-client run --save-lower FILE)"),
        **_read(chosen[1], listed, "head", f"--head {heads}"),
    }
    whole = join(network.blocks)
    try:
        whole.load_state_dict(state)
    except RuntimeError as error:
        raise ConfigError(f"{directory}: the weights do not fit model {config.model.name!r}: {error}") from error
    path = to or directory / "model.safetensors"
    try:
        # a tied tensor is copied once for each of its names
        write_atomically(path, save(copy_state(whole.state_dict())))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from error
    return path, len(state)


def _listed(directory: Path, chosen: Collection[Path]) -> dict[Path, dict[str, Tensor]]:
    """Return the state dicts of the chosen files that belong to the run itself, all of the same evaluation."""
    own = {path.stem: _real(path) for path in chosen if _real(path.parent) == _real(directory)}
    return {own[part]: state for part, state in (read_weights_of(directory, own.keys()) if own else {}).items()}


def _read(path: Path, listed: Mapping[Path, dict[str, Tensor]], part: str, how: str) -> dict[str, Tensor]:
    if _real(path) in listed:
        return listed[_real(path)]
    if not path.exists():
        raise ConfigError(f"{path}: no {part} here; where every client has its own, give {how}")
    return read_weights(path)


def _real(path: Path) -> Path:
    """Return the path without links; links that lead in a circle stay."""
    return Path(os.path.realpath(path))
