"""The command `sl-client predict`: sends a person's files, or the run's test set, through the split network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from sl_client.data import Data, Scale, data_scale, load_data
from sl_client.data.identity import data_set_of
from sl_client.inference.files import LoadedFile, batches, read_samples
from sl_client.inference.fitting import check_test_set, fit, scale_in
from sl_client.inference.output import Predictions
from sl_client.inference.predictor import Predictor
from sl_common.config.run_config import RunConfig
from sl_common.errors import ConfigError, DataError
from sl_common.host.log import Level, name_run
from sl_common.imports import is_user_code


class PredictCommand:
    """One call of the command, from the first stream to the last line."""

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
        as_is: bool = False,
        level: Level = Level.INFO,
    ) -> None:
        """`test`: number of samples of the run's test set in place of files, 0 for all.

        `connect` makes a Predictor from a function that warns. `as_is`: numbers are taken as they are, without a
        comparison with those of training.
        """
        self._files, self._test, self._batch = files, test, batch
        self._data, self._allowed, self._as_is = data, allowed, as_is
        width = max((len(str(path)) for path in files), default=0)
        self._shown = Predictions(
            as_json=as_json, width=max(width + 8, 12), samples=len(files) or test or 0, level=level
        )
        self._predictor = connect(self._shown.warn)

    def warn(self, text: str) -> None:
        """Report something that a person should know; any thread may do it."""
        self._shown.warn(text)

    def interrupt(self) -> None:
        """Make `run` raise Interrupted, from another thread."""
        self._predictor.interrupt()

    def run(self) -> None:
        """Predict and print. Raises what a Predictor does, and DataError that names a file."""
        for path in self._files:
            _check_file(path)
        try:
            with self._predictor as predictor:
                config = predictor.open()
                name_run(config.run.name)
                size = min(self._batch or config.data.batch_size, config.data.batch_size)
                if self._test is None:
                    self._predict(config, size)
                    self._shown.finish(predictor.bytes_up, predictor.bytes_down, predictor.device)
                else:
                    correct = self._score(config, size)
                    self._shown.finish(predictor.bytes_up, predictor.bytes_down, predictor.device, correct)
        finally:
            self._shown.stop()

    def _predict(self, config: RunConfig, size: int) -> None:
        inputs = self._predictor.inputs
        scale = scale_in(inputs) or data_scale(config.data.name, self._data, self._allowed)
        if inputs is not None and scale_in(inputs) is None:
            self._shown.warn(
                "the clients of this run normalised with different means or deviations: files are normalised as this "
                "device's own data"
            )
        if inputs is None and is_user_code(config.data.name):
            self._shown.warn("this run does not say what numbers it was trained on: files are taken to be in its units")
        pending: deque[list[str]] = deque()  # names of the samples in each batch that has no answer yet

        def samples() -> Iterator[Tensor]:
            for names, x in batches(self._loaded(config), size, scale):
                pending.append(names)
                yield x

        for answer in self._predictor.ask(samples()):
            self._shown.answered(answer)
            self._shown.show(pending.popleft(), answer)

    def _loaded(self, config: RunConfig) -> Iterator[LoadedFile]:
        """Yield the files in the units of training; report each kind of conversion and of doubt once."""
        reported: set[str] = set()
        inputs = None if self._as_is else self._predictor.inputs
        of_bytes = not is_user_code(config.data.name) if inputs is None else inputs.dtype == "uint8"
        for path in self._files:
            loaded = read_samples(path, config.input, of_bytes=of_bytes and not self._as_is)
            if loaded.changed and "changed" not in reported:
                reported.add("changed")
                note = f"{loaded.changed}; pictures are resized without keeping their proportions, not cropped"
                self._converted(path, loaded.changed, note)
            fitted = fit(str(path), loaded.x, inputs, picture=loaded.picture)
            if fitted.how and fitted.how not in reported:
                reported.add(fitted.how)
                self._converted(path, fitted.how, fitted.how)
            if fitted.doubt and "doubt" not in reported:
                reported.add("doubt")
                self._shown.warn(fitted.doubt)
            self._shown.expect(len(loaded.x) - 1)
            x = fitted.x.float() if self._as_is and self._predictor.trained_on_floats else fitted.x
            yield replace(loaded, x=x)

    def _converted(self, path: Path, how: str, text: str) -> None:
        self._shown.say("converted", f"{path}: {text}", file=str(path), how=how)

    def _check_set(self, config: RunConfig, data: Data) -> None:
        """Raise DataError, or warn, if the set here is not the run's.

        Some of its test samples may have been trained on.
        """
        trained = "" if self._predictor.inputs is None else self._predictor.inputs.digest
        found = data_set_of(data, own=False) if trained else None
        if found is None or found.digest == trained:
            return
        text = f"data.name = {config.data.name!r}: the set here is not the run's, whose digest is {trained}: {found}"
        if config.data.differs == "refuse" and not self._as_is:
            raise DataError(f"{text}; its test samples may have been trained on. --as-is takes them")
        self._shown.warn(text)

    def _score(self, config: RunConfig, size: int) -> int:
        """Return how many of the first samples of the run's test set the network classifies correctly."""
        data = load_data(config.data.name, self._data, self._allowed)
        data.check(config.input, config.classes)
        inputs = self._predictor.inputs
        scale = scale_in(inputs) or Scale(mean=data.mean, std=data.std)
        self._check_set(config, data)
        doubt = "" if self._as_is else check_test_set(data.tests()[0][0], inputs)
        if doubt:
            self._shown.warn(doubt)
        x, y = (tensor[: self._test or None] for tensor in data.tests()[0])
        if not self._test:
            self._shown.expect(len(x))
        starts = range(0, len(y), size)
        correct = 0
        answers = self._predictor.ask(scale.normalise(x[start : start + size]) for start in starts)
        for start, answer in zip(starts, answers, strict=True):
            self._shown.answered(answer)
            correct += int((answer.scores.argmax(dim=1) == y[start : start + size]).sum())
        return correct


def _check_file(path: Path) -> None:
    """Raise ConfigError unless it is one, before a server is asked."""
    try:
        if path.is_file():
            return
        why = "is a folder: name the files" if path.is_dir() else "is no file" if path.exists() else "no such file"
    except OSError as error:  # a name that is too long, a folder that nobody may look into
        why = error.strerror or str(error)
    raise ConfigError(f"{path}: {why}")
