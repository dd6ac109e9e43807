"""Reads arrays, dicts, lists, strings and numbers from a pickle, and nothing else: no code in the file is run.

Law: work and memory are proportional to the file. All operations are checked before the first one is executed: five
bytes can ask for a table of 64 GiB, and each level of a tuple that contains one tuple twice doubles the time to hash
it.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

from sl_common.errors import DataError

_SAFE = {"numpy": {"ndarray", "dtype"}, "multiarray": {"_reconstruct", "scalar"}, "_codecs": {"encode"}}
_MOST = 1 << 20  # operations, and places in the memo
_MOST_TUPLES = 16  # times that a tuple is taken from the memo
_KEEP = {"PUT", "BINPUT", "LONG_BINPUT"}
_TAKE = {"GET", "BINGET", "LONG_BINGET"}
_TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_NEVER = {"DUP", "PERSID", "BINPERSID", "NEXT_BUFFER", "EXT1", "EXT2", "EXT4"}


def load_pickle(data: bytes) -> Any:
    """Read a pickle. Raises DataError for operations that no array needs, and many kinds of errors if it is damaged."""
    _check_operations(data)
    return _Arrays(io.BytesIO(data), encoding="bytes").load()


def _check_operations(data: bytes) -> None:
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
        if again > _MOST_TUPLES:
            raise DataError(f"a pickle that takes tuples {again} times that it kept, at most {_MOST_TUPLES} are needed")


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Refuse everything except the classes that make up an array."""
        if name not in _SAFE.get(module.rpartition(".")[2], ()):
            raise DataError(f"a pickle that asks for {module[:80]}.{name[:80]}, which no batch of CIFAR needs")
        if name == "encode":
            return _encoded
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _encoded(text: str, encoding: str = "latin1") -> bytes:
    """Decode bytes as a pickle of protocol 2 writes them; other encodings could double the data again and again."""
    if encoding not in ("latin1", b"latin1"):
        raise DataError(f"a pickle that encodes as {encoding!r:.40}, which no batch of CIFAR needs")
    return text.encode("latin1")
