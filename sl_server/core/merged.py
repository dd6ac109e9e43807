"""A merge whose result is checked before any client goes on with it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from sl_common.errors import Diverged
from sl_common.protocol import Record
from sl_common.protocol.merge import Merged
from sl_common.tensors import StateDict, is_within

WeightLimits = Mapping[str, float | None]  # part -> largest allowed weight; None: any finite number
Constants = Mapping[str, StateDict]  # part -> initial values that the limit does not allow


def checked_merge(
    merge: Callable[[Record], Merged], record: Record, limits: WeightLimits, constants: Constants = MappingProxyType({})
) -> tuple[Merged, dict[int, str]]:
    """Return the merge without the clients whose weights spoil it for the guard, and these clients with the reasons.

    Raises Diverged if no client's weights can be merged.
    """
    guilty: dict[int, str] = {}
    while bad := _bad(merged := merge(_without(record, guilty)), limits, constants):
        found = _causes(_without(record, guilty), bad, limits, constants)
        guilty |= found
        if not found or not _without(record, guilty).weights.get(bad):
            raise Diverged(
                f"weights of {bad} are not finite after round {record.at.round + 1}, whichever client's are left out"
            )
    return merged, guilty


def _bad(merged: Merged, limits: WeightLimits, constants: Constants) -> str | None:
    """Return the first part that the guard refuses, or None."""
    return next((part for part, state in merged.items() if _wrong(part, state, limits, constants)), None)


def _wrong(part: str, state: StateDict, limits: WeightLimits, constants: Constants) -> str | None:
    limit, given = limits.get(part), constants.get(part, {})
    return next((name for name, tensor in state.items() if not is_within(tensor, limit, given.get(name))), None)


def _causes(record: Record, part: str, limits: WeightLimits, constants: Constants) -> dict[int, str]:
    states = record.weights[part]
    wrong = {client: _wrong(part, state, limits, constants) for client, state in states.items()}
    return {
        client: f"weights of its {part}: {name} would spoil what all go on with"
        for client, name in wrong.items()
        if name
    }


def _without(record: Record, clients: dict[int, str]) -> Record:
    if not clients:
        return record
    weights = {p: {c: s for c, s in states.items() if c not in clients} for p, states in record.weights.items()}
    return Record(at=record.at, samples=record.samples, weights=weights)
