"""The committed bytes of every codec. `python tests/golden_codecs.py` writes them anew after a format was changed on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sl_common.codec import Coding, Scheme

GOLDEN = Path(__file__).with_name("golden") / "codecs.json"


def golden_of(codec: Scheme) -> dict[str, Any]:
    """What goes over the wire for one fixed tensor, (3, 11), with zeros, ties and both signs."""
    x = torch.tensor([(7 * i % 23 - 8) / 4 if i % 5 else 0.0 for i in range(33)]).reshape(3, 11)
    like = torch.arange(33).reshape(3, 11).remainder(2).float() if codec.uses_like else None
    packed = codec.encode(x, Coding(like=like, draw=(0, "golden")))
    return {"params": packed.layout.params.hex(), "data": bytes(packed.data).hex()}


if __name__ == "__main__":
    from test_codec import CODECS

    found = {repr(codec): golden_of(codec) for codec in CODECS if codec.kind != "deflate"}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
