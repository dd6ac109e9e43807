"""The position of one run: round, waves, time and end. Pure.

Law: `RunSchedule` and `Launch` move it on, `Intake` sets the time, the coordinator notes checkpoints; others only read.
"""

from __future__ import annotations

import copy

from sl_common.config.run_config import RunConfig
from sl_common.messages.facts import RunEnded
from sl_common.protocol import At
from sl_common.training.segment import Tree
from sl_server.core.wave import Wave


class Progress:
    """The position of one run, shared by all parts of its coordinator."""

    def __init__(self, config: RunConfig) -> None:
        self._run = config.run
        self.now = 0.0  # seconds since the run began
        self.round = 0
        self.plan: list[list[int]] | None = None  # shards of this round's waves still to come; None: it has not begun
        self.waves = 0  # training waves of this round that have ended
        self.wave: Wave | None = None  # the wave under way
        self.completed_waves = 0  # training waves of the run that have ended
        self.has_rested = False  # a training wave has ended, and nothing has begun since
        self.gathered = False  # enough clients were here since the run began or resumed
        self.checkpoint = 0  # completed waves when the state was last made durable
        self.ended: RunEnded | None = None

    @property
    def has_begun(self) -> bool:
        """True once the first round was planned."""
        return bool(self.completed_waves) or self.plan is not None

    def at(self, wave_size: int = 1) -> At:
        """Return the position that hooks of the protocol are given."""
        run = self._run
        return At(
            seed=run.seed, round=self.round, rounds=run.rounds, wave=self.waves, wave_size=wave_size, now=self.now
        )

    def snapshot(self) -> Tree:
        """Return the position between two waves."""
        assert self.wave is None, "a wave is under way"
        return {"rests": self.completed_waves, "round": self.round, "plan": self.plan, "waves": self.waves}

    def restore(self, tree: Tree, now: float) -> None:
        """Go back to a snapshot, at the time `now`."""
        self.completed_waves = self.checkpoint = tree["rests"]
        self.round, self.plan, self.waves = tree["round"], copy.deepcopy(tree["plan"]), tree["waves"]
        self.wave, self.ended = None, None
        self.gathered = self.has_rested = False
        self.now = now
