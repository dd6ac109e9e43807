"""The schema of a run directory, its files and their content, as one number that is written before anything else.

Law: a program that resumes a run changes nothing in its directory unless the numbers agree.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from sl_common import __version__
from sl_common.errors import ConfigError
from sl_common.host.files import read_bounded, write_atomically

SCHEMA = 2  # schema 1 had no run.json
RUN_FILE = "run.json"
_MOST = 1 << 16  # bytes


def write_schema(folder: Path) -> None:
    """Write the schema's file. Raises OSError."""
    content = {"schema": SCHEMA, "cutlayer": __version__, "torch": torch.__version__}
    write_atomically(folder / RUN_FILE, json.dumps(content, indent=2).encode() + b"\n")


def check_schema(folder: Path) -> None:
    """Raise ConfigError, with nothing changed, unless the run in `folder` has this program's schema."""
    found, by = _read(folder / RUN_FILE)
    if found != SCHEMA:
        raise ConfigError(
            f"--resume {folder}: a run of schema {found}, begun by {by}; this program, cutlayer {__version__}, goes "
            f"on with schema {SCHEMA}: finish the run with the program that began it, or begin anew in another "
            "directory. Its directory is as it was"
        )


def _read(path: Path) -> tuple[object, str]:
    """Return the schema and the program's version. Raises ConfigError if the file exists and holds neither."""
    try:
        content = json.loads(read_bounded(path, _MOST).decode("utf-8-sig"))
        return content["schema"], f"cutlayer {content['cutlayer']}"
    except FileNotFoundError:
        return 1, "an older cutlayer"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or repr(error)[:200]}") from error
