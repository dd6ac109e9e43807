"""Runs on the device, beside the installed client: the committed bytes of every codec, then one run after another.

Each address that comes in is a server to take part at, through the command's own entry; the one process is for the sake of an
emulated device, where importing torch takes longest. What goes out is JSON, a line an event.
"""

from __future__ import annotations

import json
import sys

import torch
from golden_codecs import GOLDEN, golden_of

import sl_common.codec
from sl_client.cli.application import app


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def compare() -> None:
    """Every codec's encoding of one fixed tensor with the bytes that are committed."""
    known = json.loads(GOLDEN.read_text())
    names = {name: getattr(sl_common.codec, name) for name in sl_common.codec.__all__}
    wrong = [text for text in known if golden_of(eval(text, names)) != known[text]]
    say("golden", torch=torch.__version__, codecs=len(known), wrong=wrong)


def main() -> None:
    compare()
    for address in map(str.strip, sys.stdin):
        app(["run", "--server", address, "--json", "--retry", "120"], standalone_mode=False)
        say("left", server=address)


if __name__ == "__main__":
    main()
