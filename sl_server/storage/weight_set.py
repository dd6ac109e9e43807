"""The weights of one evaluation: several files that stay consistent when their writer is killed or a reader comes.

Law: `weights.json` lists the files with their digests. New files lie beside the old ones under hidden names until the
list is replaced, and take their places only then. A reader takes each file from the place where its digest matches, or
none at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sl_common.errors import ConfigError
from sl_common.host.files import sync_folder, write_atomically
from sl_common.tensors import StateDict

MANIFEST = "weights.json"
_PLAIN = ("lower.safetensors", "head.safetensors", "head-*.safetensors")
_NEW = ".new"  # suffix of the hidden name of a file that has not taken its place yet
_DIGEST = re.compile("[0-9a-f]{64}")
_TRIES = 20  # attempts to read a set while its writer is at work
_PAUSE_S = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One file of a set, as the manifest lists it."""

    file: str
    nbytes: int
    sha256: str

    def new(self, folder: Path) -> Path:
        """Return the hidden path of the file before it takes its place."""
        return folder / f".{self.file}.{self.sha256[:16]}{_NEW}"

    def read(self, folder: Path) -> bytes | None:
        """Return the bytes with this digest, from either of the two places; None if neither has them."""
        # the file may be renamed between the attempts
        for path in (folder / self.file, self.new(folder), folder / self.file):
            with contextlib.suppress(FileNotFoundError):
                data = path.read_bytes()
                if len(data) == self.nbytes and hashlib.sha256(data).hexdigest() == self.sha256:
                    return data
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightSet:
    """Files that belong together: part -> file. `round`: rounds that were over, None if unknown."""

    round: int | None
    files: Mapping[str, Listed]

    def to_json(self) -> bytes:
        """Return the content of the manifest."""
        files = {part: asdict(listed) for part, listed in self.files.items()}
        return json.dumps({"round": self.round, "files": files}, indent=2).encode() + b"\n"


def write_weights(folder: Path, states: Mapping[str, StateDict], rounds: int | None) -> None:
    """Replace the set by these parts as PART.safetensors, durably. Raises OSError, with the old set unchanged."""
    data = {name: save({k: t.detach().cpu().contiguous() for k, t in state.items()}) for name, state in states.items()}
    new = WeightSet(round=rounds, files={name: _listed(name, content) for name, content in data.items()})
    try:
        for name, content in data.items():
            write_atomically(new.files[name].new(folder), content)
        write_atomically(folder / MANIFEST, new.to_json())  # from here on the new set is valid
    except OSError:
        with contextlib.suppress(OSError):
            put_in_place(folder)  # remove the new files: a full disk needs the space
        raise
    put_in_place(folder)


def put_in_place(folder: Path) -> None:
    """Finish what a writer began: move the files of the set to their places, remove others. Raises OSError."""
    found = _manifest(folder)
    if found is None:
        return
    for listed in found.files.values():
        with contextlib.suppress(FileNotFoundError):
            listed.new(folder).replace(folder / listed.file)
    names = {listed.file for listed in found.files.values()}
    old = [path for pattern in _PLAIN for path in folder.glob(pattern) if path.name not in names]
    for path in (*old, *folder.glob(f".*{_NEW}")):
        path.unlink(missing_ok=True)
    sync_folder(folder)


def read_weights_of(folder: Path, wanted: Collection[str] | None = None) -> dict[str, dict[str, Tensor]]:
    """Return state dicts by part, all of one evaluation, also while a run writes the next one; missing parts are left
    out.

    Raises ConfigError if there is no such set.
    """
    for _ in range(_TRIES):
        found = _set_of(folder)
        parts = [part for part in found.files if wanted is None or part in wanted]
        try:
            data = {part: _bytes_of(folder, found.files[part]) for part in parts}
        except OSError as error:
            raise ConfigError(f"{error.filename or folder}: {error.strerror or error}") from error
        broken = [found.files[part].file for part, content in data.items() if content is None]
        if not broken:
            return {part: _state(folder / found.files[part].file, data[part] or b"") for part in parts}
        time.sleep(_PAUSE_S)
    names = ", ".join(listed.file for listed in found.files.values())
    raise ConfigError(
        f"{folder}: a mixed set of weights: {MANIFEST} lists {names} as they were after round {found.round}, and "
        f"{' and '.join(broken)} is missing or another file; resume the run, or give --lower and --head"
    )


def _listed(part: str, content: bytes) -> Listed:
    return Listed(file=f"{part}.safetensors", nbytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _bytes_of(folder: Path, listed: Listed) -> bytes | None:
    return listed.read(folder) if listed.sha256 else (folder / listed.file).read_bytes()


def _state(path: Path, content: bytes) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise ConfigError(f"{path}: {error}") from error
    return state


def _manifest(folder: Path) -> WeightSet | None:
    """Read the manifest; None if there is none. Raises OSError, ConfigError."""
    path = folder / MANIFEST
    try:
        found = json.loads(path.read_bytes())
        files = {str(part): Listed(**fields) for part, fields in found["files"].items()}
        for part, one in files.items():
            if "/" in part or one.file != f"{part}.safetensors" or not _DIGEST.fullmatch(one.sha256):
                raise ValueError(f"{part!r} is not a file of this directory with a digest")
        return WeightSet(round=found["round"], files=files)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: not a list of weights: {error}") from error


def _set_of(folder: Path) -> WeightSet:
    """Return the set in a folder.

    Without a manifest only a finished run is accepted: its summary was written after all of its weights, in older
    versions too.
    """
    try:
        found = _manifest(folder)
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: {error.strerror or error}") from error
    if found is not None:
        return found
    plain = sorted(path for pattern in _PLAIN for path in folder.glob(pattern))
    if plain and not (folder / "summary.json").exists():
        raise ConfigError(
            f"{folder}: there is no {MANIFEST} and the run is not over: {', '.join(path.name for path in plain)} may "
            "be of different evaluations; resume the run, or give --lower and --head"
        )
    return WeightSet(round=None, files={path.stem: Listed(file=path.name, nbytes=0, sha256="") for path in plain})
