"""The lower segment of an offered run: built from the configuration, compared with the server's, given its weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from functools import partial

import torch
from torch import Tensor

from sl_client.device.limits import DeviceLimits, device_for
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, WireError
from sl_common.messages.inference import Offer
from sl_common.network.builds import build_difference, builds_of, is_release
from sl_common.network.network import Network, trained
from sl_common.tensors import StateDict

_SHA256_BYTES = 32


class LowerSegment:
    """The lower segment of an offer's network, on this device; `load` weights before `forward`."""

    def __init__(
        self, offer: Offer, *, allowed: Collection[str] | None, device: str | None, warn: Callable[[str], None]
    ) -> None:
        """`allowed`: packages of the user's code (None: any); `device`: where to compute, by default as the run says.

        Raises ConfigError if this device cannot compute it or builds another one than the server did, WireError for an
        offer without a valid configuration or digest.
        """
        self.config = config = RunConfig.from_json(offer.config)
        torch.set_num_threads(config.run.threads)
        if len(offer.lower_sha256) not in (0, _SHA256_BYTES):
            raise WireError(f"the server offers a lower segment by a digest of {len(offer.lower_sha256)} bytes, not 32")
        self.device = device_for(config, device, warn)
        limits = DeviceLimits()
        limits.check_inference(config)
        self.network = Network.build(config, allowed, parts=("lower",), fits=partial(limits.check_auxiliary, config))
        _compare(offer, config, self.network, warn)

    @property
    def limit_bytes(self) -> int:
        """The largest message body of this run."""
        return self.network.limit_bytes

    def load(self, weights: StateDict) -> None:
        """Take weights and move to the device. Raises WireError if they do not fit."""
        self._module = trained(self.network.lower, weights, "the lower segment").to(self.device)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, *input), normalised -> z (B, *cut) on the CPU."""
        with torch.inference_mode():
            z: Tensor = self._module(x.to(self.device)).cpu()
        return z


def _compare(offer: Offer, config: RunConfig, network: Network, warn: Callable[[str], None]) -> None:
    """Raise ConfigError if our code builds another lower segment than the server's.

    Its weights would mean something else.
    """
    if offer.build is None:
        return
    (ours,) = builds_of(config, network, ("lower",), contextlib.nullcontext())
    same_torch = is_release(offer.torch, torch.__version__)
    found = build_difference(ours, offer.build, same_torch=same_torch, dtype=network.cut_dtype)
    if not found:
        return
    name, accepted = config.model.name, config.model.differs == "accept"
    text = f"model.name = {name!r}: the lower segment that this device builds is not the server's: {found}"
    if not accepted:
        raise ConfigError(f"{text}; use one file of code everywhere")
    warn(f"{text}; taken all the same: model.differs = 'accept'")
