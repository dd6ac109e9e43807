"""Arrays, dicts, lists, strings and numbers out of a pickle, and nothing else: no code of the file's runs.

Law: work and memory are proportional to the file. Its operations are looked at before any is done: five bytes can ask for a table of 64 GiB,
and tuples of the same tuple take twice as long to hash with each of them.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

from sl_common.errors import DataError

_SAFE = {"numpy": {"ndarray", "dtype"}, "multiarray": {"_reconstruct", "scalar"}, "_codecs": {"encode"}}
_MOST = 1 << 20  # operations, and places where something is kept for later
_AGAIN = 16  # times that a tuple that was kept is taken
_KEEP = {"PUT", "BINPUT", "LONG_BINPUT"}
_TAKE = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_NEVER = {"DUP", "PERSID", "BINPERSID", "NEXT_BUFFER", "EXT1", "EXT2", "EXT4"}


def load_pickle(data: bytes) -> Any:
    """Raises DataError on what no array needs, and whatever a damaged pickle raises."""
    _look(data)
    return _Arrays(io.BytesIO(data), encoding="bytes").load()


def _look(data: bytes) -> None:
    tuples: set[int] = set()
    is_tuple, kept, again = False, 0, 0
    for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
        name = operation.name
        if number > _MOST or name in _NEVER:
            raise DataError(f"a pickle with operation {number}, {name}: at most {_MOST}, and not that one, are needed")
        if name in _KEEP or name == "MEMOIZE":
            place = int(kept if argument is None else argument)
            if not 0 <= place <= _MOST:
                raise DataError(f"a pickle that keeps something in place {place}, at most {_MOST} are needed")
            (tuples.add if is_tuple else tuples.discard)(place)
            kept += 1
            continue
        is_tuple = name in _TUPLES or (name in _TAKE and argument in tuples)
        again += is_tuple and name in _TAKE
        if again > _AGAIN:
            raise DataError(f"a pickle that takes tuples {again} times that it kept, at most {_AGAIN} are needed")


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Refuse everything but what an array is made of."""
        if name not in _SAFE.get(module.rpartition(".")[2], ()):
            raise DataError(f"a pickle that asks for {module[:80]}.{name[:80]}, which no batch of CIFAR needs")
        if name == "encode":
            return _encoded
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """How a pickle of protocol 2 says bytes; other encodings double what they are given, as often as it asks."""
    if encoding not in ("latin1", b"latin1"):
        raise DataError(f"a pickle that encodes as {encoding!r:.40}, which no batch of CIFAR needs")
    return text.encode("latin1")
