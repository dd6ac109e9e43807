"""The trial of a checkpoint before a run goes on from it: it may be of another run, or changed by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from sl_common.bounded import MAX_COUNT
from sl_common.errors import DataError
from sl_common.network.network import Network
from sl_common.training.segment import Tree
from sl_server.core.coordinator import Coordinator
from sl_server.core.recordings import check_recorded
from sl_server.core.roster import Member
from sl_server.core.sessions import Sessions
from sl_server.telemetry.ledger import Ledger


def rehearse(tree: Tree, network: Network, coordinator: Coordinator) -> None:
    """Restore a checkpoint into a coordinator that the caller throws away. Raises DataError if it does not fit the run.

    Recordings are checked one by one and not kept, so that this takes no more memory than the run's own state.
    """
    try:
        _check_numbers(tree)
        check_recorded(tree["coordinator"]["recordings"], network.cut_shape)
        lean = tree["coordinator"] | {"recordings": {}}
        Sessions(coordinator, incarnation=1).restore({**tree, "coordinator": lean})
        Ledger().restore(tree["ledger"])
        coordinator.weights()
    except Exception as error:  # a value of the wrong kind may raise anything
        raise DataError(f"a checkpoint that does not fit this run: {error!r:.300}") from error


def _check_numbers(tree: Tree) -> None:
    own: Mapping[str, Any] = tree["coordinator"]
    for name in ("rests", "round", "waves"):
        _check(int, own[name], name)
        if not 0 <= own[name] <= MAX_COUNT:
            raise ValueError(f"{name} is {own[name]}")
    _check(list[list[int]] | None, own["plan"], "plan")
    _check(list[float], own["losses"], "losses")
    _check(list[int], own["alignments"], "alignments")
    _check(str, tree["run"], "run")
    _check(float, tree["seconds"], "seconds")
    if not 0 <= tree["seconds"] < math.inf:
        raise ValueError(f"seconds are {tree['seconds']}")
    _check(dict[str, int], tree["files"], "files")
    _check(list[tuple[str, str, str, int]], tree["ledger"], "ledger")
    if min([0, *tree["files"].values(), *(row[3] for row in tree["ledger"])]) < 0:
        raise ValueError("counts of bytes are negative")
    hints = get_type_hints(Member)
    for fields in own["roster"]:
        if fields.keys() != hints.keys():
            raise ValueError(f"a client has the fields {sorted(fields)[:20]}")
        for name, value in fields.items():
            _check(hints[name], value, name)


@lru_cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _check(kind: Any, value: object, name: str) -> None:
    """Raise ValueError, naming the field, unless the value is of this type."""
    try:
        _adapter(kind).validate_python(value, strict=True)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
