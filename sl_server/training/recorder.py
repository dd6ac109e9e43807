"""The record of a run: every fact goes into the run directory and onto the screen."""

from __future__ import annotations

import time
from typing import Any

from sl_common.host.descriptors import cause
from sl_common.host.log import lost_output
from sl_common.messages.facts import BatchEvaluated, Evaluated, Fact, Trained, WaveBegun
from sl_server.console.show import ServerConsole
from sl_server.core.coordinator import Coordinator
from sl_server.storage.run_directory import RunDirectory


class RunRecorder:
    """Writes and shows each fact, and keeps the time of the run from its first wave on."""

    def __init__(self, coordinator: Coordinator, directory: RunDirectory, show: ServerConsole) -> None:
        self._coordinator = coordinator
        self._directory = directory
        self._show = show
        self._began: float | None = None
        self._before = 0.0  # seconds in processes before this one
        self._disk_is_full = False
        self._is_unheard = False  # nobody reads standard output any more

    def resume(self, seconds: float) -> None:
        """Count the seconds that the run has taken in processes before this one."""
        self._before = seconds

    @property
    def seconds(self) -> float:
        """Seconds since the first wave began; waiting for clients does not count."""
        return self._before + (0.0 if self._began is None else time.monotonic() - self._began)

    def fact(self, fact: Fact) -> None:
        """Write and show a fact. A full disk stops no training: its lines are kept and written as soon as possible."""
        if self._began is None and isinstance(fact, WaveBegun):
            self._began = time.monotonic()
        if not isinstance(fact, Trained | BatchEvaluated):
            self._look_at_output()
        try:
            self._directory.fact(fact, self.seconds)
            if isinstance(fact, Evaluated):
                self._directory.save_weights(self._coordinator.weights(), self._coordinator.agreement.inputs)
        except OSError as error:
            if not self._disk_is_full:
                self._show.warn(
                    f"cannot write to {self._directory.path} ({cause(error)}); training goes on, lines are kept in "
                    "memory and written when that is possible"
                )
            self._disk_is_full = True
        if self._disk_is_full and not self._directory.behind:
            self._disk_is_full = False
            text = f"{self._directory.path} can be written again, and holds what was kept"
            self._show.say("written", text, text=text)
        self._show.fact(fact)

    def _look_at_output(self) -> None:
        """Note in the run directory that standard output is not read any more, if so."""
        lost = lost_output()
        if lost is None:
            return
        self._directory.notes["lost_output"] = lost
        if not self._is_unheard:
            self._directory.warn(f"what this process says is not heard any more: {lost}", self.seconds)
        self._is_unheard = True

    def finish(self, failure: str | None = None) -> tuple[dict[str, Any], str | None]:
        """Write, show and return the summary, and why the run failed, if it did: also if results cannot be written."""
        self._look_at_output()
        try:
            summary = self._directory.finish(self._coordinator, self.seconds, failure)
        except OSError as error:
            failure = failure or f"the results could not be written to {self._directory.path}: {cause(error)}"
            summary = self._directory.summary(self._coordinator, self.seconds, failure)
        self._show.summary(summary, str(self._directory.path))
        return summary, failure
