"""Read a run directory back. Missing parts are reported, not guessed; other directories are refused."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError
from sl_server.storage.trained import config_of

CountField = Annotated[int, Field(ge=0, lt=1 << 63)]  # what was counted, and a float can be made of
ByKind = Mapping[str, CountField]
BytesByKind = Mapping[str, ByKind]  # {"up": {kind: bytes}, "down": …}


class _Line(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    seconds: float = 0.0  # since the first wave began


class RoundLine(_Line):
    """The end of a round; bytes are those so far, phases the mean seconds of this round's `timed_steps`."""

    event: Literal["round"]
    round: CountField
    loss: float | None
    samples: CountField
    clients: CountField
    bytes: BytesByKind
    payload_bytes: BytesByKind = {}
    timed_steps: CountField = 0
    phases: Mapping[str, float] = {}


class EvaluationLine(_Line):
    """An evaluation on held-out data after a round."""

    event: Literal["evaluation"]
    round: CountField
    shared: bool
    accuracy: float
    min: float
    max: float
    loss: float
    samples: CountField
    bytes: BytesByKind = {}
    payload_bytes: BytesByKind = {}


class ClientLine(_Line):
    """An event of one client."""

    event: Literal["client_joined", "client_left", "client_late", "client_away", "client_back", "client_done"]
    client: str
    shard: CountField = 0
    reason: str = ""


class WaveLine(_Line):
    """The start of a wave."""

    event: Literal["wave_begun"]
    clients: tuple[str, ...] = ()
    evaluate: bool = False


class RunLine(_Line):
    """An event of the whole run."""

    event: Literal["went_back", "run_ended"]
    reason: str = ""


FactLine = RoundLine | EvaluationLine | ClientLine | WaveLine | RunLine
_KNOWN: TypeAdapter[FactLine] = TypeAdapter(Annotated[FactLine, Field(discriminator="event")])
_EVENTS = {
    event
    for kind in (RoundLine, EvaluationLine, ClientLine, WaveLine, RunLine)
    for event in kind.model_fields["event"].annotation.__args__  # type: ignore[union-attr]
}


class _Summary(BaseModel):
    """The part of a summary that a report shows and computes with."""

    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    bytes: BytesByKind
    payload_bytes: BytesByKind
    weights_sha256: str
    reason: str
    finished: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class PastRun:
    """One run, over or not."""

    path: Path
    config: RunConfig
    lines: tuple[FactLine, ...]
    summary: Mapping[str, Any] | None
    missing: tuple[str, ...]  # as text

    @property
    def rounds(self) -> list[RoundLine]:
        """Ends of rounds, in order."""
        return [line for line in self.lines if isinstance(line, RoundLine)]

    @property
    def evaluations(self) -> list[EvaluationLine]:
        """Evaluations, in order."""
        return [line for line in self.lines if isinstance(line, EvaluationLine)]

    @property
    def seconds(self) -> float:
        """Return the seconds that the run took, or has taken so far."""
        if self.summary is not None:
            return float(self.summary["seconds"])
        return max((line.seconds for line in self.lines), default=0.0)

    def bytes(self, which: Literal["bytes", "payload_bytes"] = "bytes") -> BytesByKind:
        """Return all bytes by direction and kind, or those so far."""
        if self.summary is not None:
            found: BytesByKind = self.summary[which]
            return found
        counted = [getattr(line, which) for line in self.lines if isinstance(line, RoundLine | EvaluationLine)]
        return next((counts for counts in reversed(counted) if counts), {})

    @property
    def phases(self) -> dict[str, float]:
        """Return the mean seconds of a step by phase, over all timed steps."""
        total: dict[str, float] = {}
        steps = sum(line.timed_steps for line in self.rounds)
        for line in self.rounds:
            for phase, mean in line.phases.items():
                total[phase] = total.get(phase, 0.0) + mean * line.timed_steps / steps
        return total

    def bytes_at(self, line: RoundLine | EvaluationLine) -> int:
        """Return wire bytes of both directions up to a round, without evaluation, which is no part of the cost of
        training."""
        counts = line.bytes or next((r.bytes for r in self.rounds if r.round == line.round), {})
        return sum(n for kinds in counts.values() for kind, n in kinds.items() if kind != "eval")


def read_past_run(path: Path) -> PastRun:
    """Read a run directory. Raises ConfigError if it is none, or cannot be read."""
    config = config_of(path)
    missing: list[str] = []
    lines = _lines(path / "metrics.jsonl", missing)
    summary = _summary(path / "summary.json", missing)
    if not any(isinstance(line, RoundLine) for line in lines):
        missing.append("no round is over yet")
    elif not any(isinstance(line, EvaluationLine) for line in lines):
        missing.append("no evaluation yet: no accuracy")
    return PastRun(path=path, config=config, lines=lines, summary=summary, missing=tuple(missing))


def _lines(path: Path, missing: list[str]) -> tuple[FactLine, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        missing.append("metrics.jsonl is missing")
        return ()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    whole, _, rest = text.rpartition("\n")
    if rest:
        missing.append("metrics.jsonl ends within a line, which is left out")
    return tuple(_parsed(path, whole))


def _parsed(path: Path, text: str) -> Iterator[FactLine]:
    for number, row in enumerate(io.StringIO(text), 1):  # one line at a time, split at line feeds only
        try:
            found = json.loads(row)
            if found["event"] in _EVENTS:  # other events are not shown
                yield _KNOWN.validate_python(found)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            what = (
                error.errors()[0]["msg"]
                if isinstance(error, ValidationError)
                else f"not an event: {row.rstrip()[:60]!r}"
            )
            raise ConfigError(f"{path}, line {number}: {what}") from error


def _summary(path: Path, missing: list[str]) -> Mapping[str, Any] | None:
    try:
        summary = json.loads(path.read_text(encoding="utf-8-sig"))
        if summary.keys() >= _Summary.model_fields.keys():
            return dict(summary) | _Summary.model_validate(summary).model_dump()
    except FileNotFoundError:
        missing.append("summary.json is not there yet: the run goes on, or was cut short; its numbers are those so far")
        return None
    except ValidationError as error:
        key, what = error.errors()[0]["loc"], error.errors()[0]["msg"]
        raise ConfigError(f"{path}: {'.'.join(map(str, key))[:80]}: {what}") from error
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: {error}") from error
    raise ConfigError(f"{path}: not the summary of a run")
