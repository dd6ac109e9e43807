"""What a benchmark leaves: a page of Markdown and its raw numbers, with the command and the machine that made them."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.step import RESULTS, where


def parser_of(module: str, doc: str | None) -> argparse.ArgumentParser:
    """The arguments that all of them have."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=(doc or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the page and its numbers")
    return parser


class Page:
    """`name`.md and `name`.json of one run of `python -m benchmarks.MODULE`."""

    def __init__(self, module: str, name: str) -> None:
        self._name = name
        self.command = shlex.join(["python", "-m", f"benchmarks.{module}", *sys.argv[1:]])
        self.setting = where()

    @property
    def made_by(self) -> str:
        """`Made by COMMAND on DATE: CPU × n`, to be gone on with."""
        return f"Made by `{self.command}` on {self.setting['date']}: {self.setting['cpu']} × {self.setting['cpus']}"

    def save(self, folder: Path, sections: Sequence[str], raw: Mapping[str, Any]) -> None:
        """Write both, and print the page."""
        text = "\n\n".join(sections)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self._name}.md").write_text(text + "\n")
        numbers = {"command": self.command, **self.setting, **raw}
        (folder / f"{self._name}.json").write_text(json.dumps(numbers, indent=1) + "\n")
        print(text)
