"""The base of every configuration: a frozen pydantic value that refuses unknown keys and compares by content."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Value(BaseModel):
    """A frozen, keyword-only value. Fields are configuration, methods are behaviour; there is no other state."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
