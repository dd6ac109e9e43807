"""Unions, by `kind`, of the codecs that stand alone; a codec that wraps another one names these."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from sl_common.codec.float8 import Float8
from sl_common.codec.half import BFloat16, Float16
from sl_common.codec.identity import Identity
from sl_common.codec.mask import Mask
from sl_common.codec.randtopk import RandTopK
from sl_common.codec.topk import TopK
from sl_common.codec.uniform import Uniform

AnyLossy = Float16 | BFloat16 | Float8 | Uniform | Mask | TopK | RandTopK
Lossy = Annotated[AnyLossy, Field(discriminator="kind")]
Plain = Annotated[Identity | AnyLossy, Field(discriminator="kind")]
