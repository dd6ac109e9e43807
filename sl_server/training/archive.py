"""The run directory as the place of checkpoints, and of files that go back with them."""

from __future__ import annotations

from sl_common.training.segment import Tree
from sl_server.storage.checkpoint import Checkpoints
from sl_server.storage.eventlog import EventLog
from sl_server.storage.run_directory import EMPTY_FILES, RunDirectory
from sl_server.telemetry.ledger import Ledger
from sl_server.training.recorder import RunRecorder


class DiskArchive:
    """The checkpoints of a run, and the lengths of its other files when the last one was made."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        directory: RunDirectory,
        ledger: Ledger,
        recorder: RunRecorder,
        log: EventLog | None = None,
    ) -> None:
        self._checkpoints, self._directory, self._ledger, self._recorder = checkpoints, directory, ledger, recorder
        self._log = log
        self._files = dict(EMPTY_FILES)

    def save(self, number: int, tree: Tree) -> None:
        """Save a checkpoint, after everything that it refers to is durable. Raises OSError."""
        files = self._directory.written()
        if self._log is not None:
            self._log.sync()
        extra = {"files": files, "ledger": self._ledger.snapshot(), "seconds": self._recorder.seconds}
        self._checkpoints.save(number, tree | extra)
        self._files = files

    def back(self) -> None:
        """Cut the files of the run back to their lengths at the last checkpoint."""
        self._directory.cut_back(self._files)

    def resume(self, tree: Tree) -> None:
        """Go on from a checkpoint that another process made. Raises ConfigError."""
        self._checkpoints.forget_newer()
        self._files = tree["files"]
        self._ledger.restore(tree["ledger"])
        self._recorder.resume(tree["seconds"])
