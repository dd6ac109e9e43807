"""Find the run that a command is about, and its stage, from a configuration, a directory, or both."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sl_common.errors import ConfigError
from sl_common.host.text import given

if TYPE_CHECKING:  # modules that import torch are imported when needed, not for --help
    from sl_common.config.run_config import RunConfig


class Stage(Enum):
    """Progress of the run in a directory."""

    NEW = "new"
    BEGUN = "begun"
    OVER = "over"


def read_config(path: Path, overrides: list[str] | None) -> RunConfig:
    """Read a run's configuration from TOML, or from the JSON in a run directory. Raises ConfigError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    from sl_common.config.run_config import RunConfig

    overrides = [given("--set", one) for one in overrides or ()]
    try:
        if path.suffix != ".json":
            return RunConfig.from_toml(text, overrides)
        if overrides:
            raise ConfigError("--set works on a TOML file")
        return RunConfig.from_json(text)
    except ConfigError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error


def new_directory(name: str, suffix: str = "") -> Path:
    """Return runs/NAME-TIME; a second run in the same second gets a number.

    Characters that file names of this locale cannot hold become underscores.
    """
    coding = sys.getfilesystemencoding()
    name = name.encode(coding, "replace").decode(coding).replace("?", "_")
    first = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}{suffix}"
    numbered = (first.with_name(f"{first.name}-{number}") for number in count(2))
    return next(path for path in chain([first], numbered) if not os.access(path, os.F_OK))


@contextmanager
def held_run(
    config_file: Path | None, resume: Path | None, out: Path | None, overrides: list[str] | None, *, record: bool
) -> Iterator[tuple[RunConfig, Path, Stage]]:
    """Yield the result of `which_run` while this process alone holds the directory.

    The lock is taken before the directory's content is read for the decision. Raises ConfigError, also if another
    process writes there.
    """
    from sl_common.host.locks import sole_writer

    config, where, stage = which_run(config_file, resume, out, overrides, record=record)
    if stage is Stage.OVER:  # nothing is written
        yield config, where, stage
        return
    with sole_writer(where, "--out" if resume is None else "--resume"):
        if resume is not None:  # another process may have continued the run before the lock was taken
            config, where, stage = which_run(config_file, resume, out, overrides, record=record)
        yield config, where, stage


def which_run(
    config_file: Path | None, resume: Path | None, out: Path | None, overrides: list[str] | None, *, record: bool
) -> tuple[RunConfig, Path, Stage]:
    """Return the configuration to run, its directory (a new one, or `resume`), and the stage.

    With a configuration and `resume`, the directory may also be empty, or hold a finished run of that configuration.
    Raises ConfigError if the options are ambiguous.
    """
    if resume is None:
        if config_file is None:
            raise ConfigError(
                "give a configuration RUN.toml, or --resume DIR, or both to begin it there or go on with it"
            )
        config = read_config(config_file, overrides)
        return config, out or new_directory(config.run.name), Stage.NEW
    if out is not None or record or (overrides and config_file is None):
        raise ConfigError(
            "--resume goes on with a run as it is: without --out and --record, and --set only beside a file"
        )
    from sl_server.storage.schema import check_schema

    over = is_over(resume)
    if not over and os.access(resume / "config.json", os.F_OK):
        check_schema(resume)
    if config_file is None:
        if over:
            raise ConfigError(f"--resume {resume}: that run is over; its results are in summary.json")
        return read_config(resume / "config.json", None), resume, Stage.BEGUN
    config = read_config(config_file, overrides)
    if not os.access(resume / "config.json", os.F_OK):
        return config, resume, Stage.NEW
    _same_run(config, read_config(resume / "config.json", None), config_file, resume)
    return config, resume, Stage.OVER if over else Stage.BEGUN


def is_over(run_directory: Path) -> bool:
    """Return True if all rounds of a run are done.

    A run that ended earlier has a summary too, and can be resumed: it failed, its operator stopped it, or its clients
    left.
    """
    try:
        summary = json.loads((run_directory / "summary.json").read_text(encoding="utf-8-sig"))
        return summary.get("finished") is not False and summary.get("failed") is not True
    except FileNotFoundError:
        return False
    except OSError:  # no folder, or a name that no folder can have
        return os.path.lexists(run_directory / "summary.json")
    except (ValueError, AttributeError, RecursionError):
        return True  # an unreadable summary was still written at the end of a run


def _same_run(config: RunConfig, held: RunConfig, config_file: Path, resume: Path) -> None:
    ours, theirs = dict(_leaves(config.model_dump(mode="json"))), dict(_leaves(held.model_dump(mode="json")))
    differing = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if not differing:
        return
    shown = "; ".join(f"{key} is {ours.get(key)!r} here and {theirs.get(key)!r} there" for key in differing[:3])
    more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
    raise ConfigError(
        f"--resume {resume}: holds another run than {config_file}: {shown}{more}; choose another directory"
    )


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every key of a tree, dotted, with its value."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from _leaves(below, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def outcome(run_directory: Path) -> str:
    """Return the end of a finished run in one line. Raises ConfigError if its summary cannot be read."""
    path = run_directory / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8-sig"))
        evaluation = summary["evaluation"]
        accuracy = "" if evaluation is None else f", accuracy {100 * evaluation['accuracy']:.2f} %"
        return f"{summary['reason']}{accuracy}, weights {summary['weights_sha256'][:16]}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
