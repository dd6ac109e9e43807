"""Losses and accuracies of ended waves, summed by (shard, step) whatever the order of arrival was. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sl_common.messages.facts import Evaluated, Score
from sl_server.core.wave import Wave


def mean_loss(waves: Sequence[Wave]) -> tuple[float, int]:
    """Return the mean training loss of a round's waves, and its number of samples; some clients computed theirs."""
    total, count = 0.0, 0
    for wave in waves:
        for _, (loss, samples) in sorted(wave.losses.items()):
            total, count = total + loss * samples, count + samples
        for _, done in sorted(wave.done.items()):
            if done.loss_sum:
                total, count = total + done.loss_sum, count + done.samples
    return (total / count if count else 0.0), count


def evaluation(wave: Wave, names: Mapping[int, str], *, shared: bool) -> Evaluated | None:
    """Return the result of an evaluation wave; None if no client finished it."""
    batches: dict[int, list[tuple[float, int]]] = {}
    for (client, _), batch in sorted(wave.losses.items()):
        batches.setdefault(client, []).append(batch)
    scores = {client: _score(batches.get(client, ()), wave.correct.get(client, 0)) for client in sorted(wave.done)}
    scores = {client: score for client, score in scores.items() if score.samples}
    if not scores:
        return None
    samples = sum(s.samples for s in scores.values())
    accuracies = [s.accuracy for s in scores.values()]
    pooled = sum(s.correct for s in scores.values()) / samples
    return Evaluated(
        round=wave.at.round,
        shared=shared,
        accuracy=pooled if shared else sum(accuracies) / len(accuracies),
        lowest=min(accuracies),
        highest=max(accuracies),
        loss=sum(s.loss * s.samples for s in scores.values()) / samples,
        samples=samples,
        clients={names[client]: score for client, score in scores.items()},
    )


def _score(batches: Sequence[tuple[float, int]], correct: int) -> Score:
    samples = sum(n for _, n in batches)
    loss = sum(loss * n for loss, n in batches) / samples if samples else 0.0
    return Score(samples=samples, correct=correct, loss=loss)
