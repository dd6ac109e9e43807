"""Codecs: how a tensor becomes bytes.

One scheme a file; a class that is added to the union is tested, configurable and on the wire.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from torch import Tensor

from sl_common.codec.deflate import Deflate
from sl_common.codec.feedback import Feedback
from sl_common.codec.float8 import Float8
from sl_common.codec.half import BFloat16, Float16
from sl_common.codec.identity import Identity
from sl_common.codec.kinds import AnyLossy
from sl_common.codec.mask import Mask
from sl_common.codec.masked import Masked
from sl_common.codec.packed import Coding, Layout, LinkRole, Packed, Scheme
from sl_common.codec.randtopk import RandTopK
from sl_common.codec.topk import TopK
from sl_common.codec.uniform import Uniform
from sl_common.errors import WireError
from sl_common.kinds import is_real
from sl_common.tensors import is_within
from sl_common.value import Value

__all__ = [
    "BFloat16",
    "Codec",
    "Coding",
    "Deflate",
    "Feedback",
    "Float8",
    "Float16",
    "Identity",
    "Layout",
    "Link",
    "LinkRole",
    "Mask",
    "Masked",
    "Packed",
    "RandTopK",
    "Scheme",
    "TopK",
    "Uniform",
]

# The registry of codecs.
Codec = Annotated[
    Identity | AnyLossy | Masked | Deflate | Feedback,
    Field(discriminator="kind"),
]

_EXACT = Identity()
SANE = 1e18  # largest magnitude of a trained weight; a larger one is a constant, such as a mask's


class Link(Value):
    """The codec of each kind of tensor.

    Only floating-point numbers of 16 bits and more are encoded. Labels, integers, complex numbers and float8 always
    travel as they are, and so do weights with numbers that a codec would spoil (NaN, Inf, or beyond `SANE`).
    """

    up: Codec = Field(Identity(), description="Codec of activations.")
    down: Codec = Field(Identity(), description="Codec of cut gradients.")
    state: Codec = Field(Identity(), description="Codec of weights.")

    @field_validator("up", "state")
    @classmethod
    def _has_no_activation(cls, codec: Codec) -> Codec:
        if codec.uses_like:
            raise ValueError(
                f"kind {codec.kind!r} is for down alone: it needs the activation that a cut gradient belongs to"
            )
        return codec

    @field_validator("up")
    @classmethod
    def _are_other_samples(cls, codec: Codec) -> Codec:
        if isinstance(codec, Feedback):
            raise ValueError("kind 'feedback' is for down and state: activations are of other samples each time")
        return codec

    def agreed(self, direction: LinkRole, layout: Layout) -> Scheme:
        """Return the codec of a received tensor. Raise WireError if the peer used another one than this run says."""
        scheme: Scheme = getattr(self, direction) if is_real(layout.dtype) else _EXACT
        if direction == "state" and layout.codec == _EXACT.kind:
            scheme = _EXACT
        if layout.codec != scheme.kind:
            raise WireError(f"peer used codec {layout.codec!r} for {direction}, this run says {scheme.kind!r}")
        scheme.check(layout)
        return scheme

    def chosen(self, direction: LinkRole, x: Tensor) -> Scheme:
        """Return the codec for a tensor that is to be sent."""
        scheme: Scheme = getattr(self, direction)
        if not is_real(x.dtype) or (direction == "state" and scheme.kind != _EXACT.kind and not is_within(x, SANE)):
            return _EXACT
        return scheme
