"""How a tensor becomes bytes. One scheme a file; add the class to the union and it is tested, configurable and on the wire."""

from __future__ import annotations

from sl_common.codec.identity import Identity
from sl_common.codec.packed import Coding, Direction, Layout, Packed, Scheme
from sl_common.errors import WireError
from sl_common.value import Value

__all__ = ["Codec", "Coding", "Direction", "Identity", "Layout", "Link", "Packed", "Scheme"]

# The registry. With a second member: Annotated[Identity | Float8 | …, Field(discriminator="kind")].
Codec = Identity

_EXACT = Identity()


class Link(Value):
    """Which codec a tensor travels in, by what it is. Labels and integer tensors always travel as they are."""

    up: Codec = Identity()  # activations
    down: Codec = Identity()  # cut gradients
    state: Codec = Identity()  # weights

    def agreed(self, direction: Direction, layout: Layout) -> Scheme:
        """The codec for a received tensor; raises WireError if the peer used another one than this run says."""
        scheme: Scheme = getattr(self, direction) if layout.dtype.is_floating_point else _EXACT
        if layout.codec != scheme.kind:
            raise WireError(f"peer used codec {layout.codec!r} for {direction}, this run says {scheme.kind!r}")
        scheme.check(layout)
        return scheme
