"""`sl-client predict`: a person's files, or the run's own test set, through the split network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from sl_client.data import load, scale_of
from sl_client.predictions import Predictions
from sl_client.predictor import Predictor
from sl_client.samples import Loaded, batches, read
from sl_common.config import RunConfig
from sl_common.errors import ConfigError
from sl_common.imports import is_user_code


class Prediction:
    """One such errand, from the first stream to the last line."""

    def __init__(
        self,
        connect: Callable[[Callable[[str], None]], Predictor],
        *,
        files: Sequence[Path],
        test: int | None,
        batch: int | None,
        data: Path | None,
        allowed: Collection[str],
        as_json: bool,
    ) -> None:
        """`test`: so many samples of the run's test set in place of files, 0 for all. `connect` makes a Predictor that warns so."""
        self._files, self._test, self._batch = files, test, batch
        self._data, self._allowed = data, allowed
        width = max((len(str(path)) for path in files), default=0)
        self._shown = Predictions(as_json=as_json, width=max(width + 8, 12), samples=len(files) or test or 0)
        self._predictor = connect(self._shown.warn)

    def interrupt(self) -> None:
        """From another thread."""
        self._predictor.interrupt()

    def run(self) -> None:
        """Raises what a Predictor does, and DataError naming a file."""
        for path in self._files:
            if not path.is_file():
                raise ConfigError(f"{path}: {'is a folder: name the files' if path.is_dir() else 'no such file'}")
        try:
            with self._predictor as predictor:
                config = predictor.open()
                self._shown.device(predictor.device)
                size = min(self._batch or config.data.batch_size, config.data.batch_size)
                if self._test is None:
                    self._predict(config, size)
                    self._shown.finish(predictor.bytes_up, predictor.bytes_down)
                else:
                    correct = self._score(config, size)
                    self._shown.finish(predictor.bytes_up, predictor.bytes_down, correct)
        finally:
            self._shown.stop()

    def _predict(self, config: RunConfig, size: int) -> None:
        scale = scale_of(config.data.name, self._data, self._allowed)
        asked: deque[list[str]] = deque()

        def samples() -> Iterator[Tensor]:
            for names, x in batches(self._loaded(config), size, scale):
                asked.append(names)
                yield x

        for answer in self._predictor.ask(samples()):
            self._shown.took(answer)
            self._shown.show(asked.popleft(), answer)

    def _loaded(self, config: RunConfig) -> Iterator[Loaded]:
        told = False
        for path in self._files:
            loaded = read(path, config.input, of_bytes=not is_user_code(config.data.name))
            if loaded.changed and not told:
                told = True
                self._shown.say(
                    "converted",
                    f"{path}: {loaded.changed}; pictures are resized without keeping their proportions, not cropped",
                    file=str(path),
                    how=loaded.changed,
                )
            self._shown.expect(len(loaded.x) - 1)
            yield loaded

    def _score(self, config: RunConfig, size: int) -> int:
        """How many of the first samples of the run's test set the network knows."""
        data = load(config.data.name, self._data, self._allowed)
        data.check(config.input, config.classes)
        x, y = (tensor[: self._test or None] for tensor in data.tests()[0])
        if not self._test:
            self._shown.expect(len(x))
        starts = range(0, len(y), size)
        correct = 0
        answers = self._predictor.ask(data.normalise(x[start : start + size]) for start in starts)
        for start, answer in zip(starts, answers, strict=True):
            self._shown.took(answer)
            correct += int((answer.scores.argmax(dim=1) == y[start : start + size]).sum())
        return correct
