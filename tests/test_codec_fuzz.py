"""A short run of tests/fuzz_codecs.py; `make fuzz` does a quarter of a million."""

from __future__ import annotations

from fuzz import fuzz


def test_hostile_headers_and_bytes_do_no_harm() -> None:
    ended, _ = fuzz("codecs", 6000, seed=7)
    assert set(ended) >= {"header refused", "body refused", "decoded", "endpoint refused", "endpoint took it"}
