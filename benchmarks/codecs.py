"""Measures every codec on one activation: bytes, error, encode and decode against a copy of the same tensor.

python -m benchmarks.codecs [--rounds 15]; `make bench-codecs`. It writes codecs.json and codecs.md into benchmarks/results.

The copy goes into a buffer that is there and was touched; a codec's output is allocated by each call, as in a run. One thread.
Every round times the copy, torch's own calls and every codec once, one after the other; medians over the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.page import Page, parser_of
from sl_common.codec import (
    BFloat16,
    Codec,
    Coding,
    Deflate,
    Float8,
    Float16,
    Identity,
    Mask,
    Masked,
    RandTopK,
    TopK,
    Uniform,
)
from sl_common.codec.words import words

SHAPES = {"large": (64, 64, 32, 32), "small": (64, 32, 14, 14)}
CODECS: tuple[Codec, ...] = (
    Identity(),
    Float16(),
    BFloat16(),
    Float8(),
    Float8(format="e4m3"),
    Float8(format="e5m2"),
    Uniform(),
    Uniform(rounding="stochastic"),
    Uniform(point="middle"),
    Uniform(bits=4),
    Uniform(bits=3),
    Mask(),
    Mask(scope="sample"),
    Mask(r=0.9),
    Mask(r=0.9, values="float16"),
    Mask(r=0.95875, b=1),
    TopK(),
    TopK(r=0.9, values="float16"),
    TopK(r=0.9, scope="batch"),
    TopK(r=0.999),
    RandTopK(),
    Masked(),
    Deflate(),
    Deflate(of=Float8()),
    Deflate(of=Mask()),
)
GOALS = (  # codec, which way, of the copy
    (Float8(format="e4m3"), "encode", 0.18),
    (Float8(format="e5m2"), "encode", 0.18),
    (Float8(format="e4m3"), "decode", 0.35),
    (Float8(format="e5m2"), "decode", 0.35),
    (Float8(), "encode", 0.08),
    (Mask(), "decode", 0.10),
    (Uniform(), "encode", 0.17),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One codec on one tensor; times are medians in seconds."""

    codec: str
    config: dict[str, Any]
    nbytes: int
    ratio: float
    error: float
    encode_s: float
    decode_s: float
    encode_of_copy: float  # the copy's time divided by ours: 1 = as fast as memory
    decode_of_copy: float


def activation(shape: tuple[int, ...]) -> Tensor:
    """Normal numbers after a ReLU, seeded."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).relu_()


def measure(x: Tensor, rounds: int) -> dict[str, Any]:
    """All of them, interleaved."""
    coding = Coding(like=x, draw=(0,))
    packed = {codec: codec.encode(x, coding) for codec in CODECS}
    target = torch.zeros_like(x)
    low = torch.empty(x.shape, dtype=torch.float8_e4m3fn)
    kept = x.numel() // 100
    timed: dict[Any, Callable[[], object]] = {
        "copy": lambda: target.copy_(x),
        "torch: cast to float8_e4m3fn": lambda: low.copy_(x),
        "torch: cast back from float8_e4m3fn": lambda: target.copy_(low),
        "torch: topk of 1 %": lambda: x.view(-1).topk(kept),
    }
    for codec in CODECS:
        timed[codec, "encode"] = lambda codec=codec: codec.encode(x, coding)
        timed[codec, "decode"] = lambda codec=codec: codec.decode(packed[codec], coding)
    seconds: dict[Any, list[float]] = {key: [] for key in timed}
    for number in range(rounds + 2):  # two to warm up
        for key, once in timed.items():
            started = time.perf_counter()
            once()
            if number > 1:
                seconds[key].append(time.perf_counter() - started)
    median = {key: statistics.median(found) for key, found in seconds.items()}
    copy = median["copy"]
    rows = [
        Row(
            codec=words(codec),
            config=codec.model_dump(mode="json"),
            nbytes=packed[codec].layout.nbytes,
            ratio=4 * x.numel() / packed[codec].layout.nbytes,
            error=float((x - codec.decode(packed[codec], coding)).norm() / x.norm()),
            encode_s=median[codec, "encode"],
            decode_s=median[codec, "decode"],
            encode_of_copy=copy / median[codec, "encode"],
            decode_of_copy=copy / median[codec, "decode"],
        )
        for codec in CODECS
    ]
    torch_s = {key: value for key, value in median.items() if isinstance(key, str)}
    return {"shape": list(x.shape), "nbytes": 4 * x.numel(), "torch_s": torch_s, "rows": [asdict(row) for row in rows]}


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    nbytes, copy = result["nbytes"], result["torch_s"]["copy"]
    shape = " × ".join(str(n) for n in result["shape"])
    lines = [
        f"## {shape} float32 after ReLU, {nbytes / 1e6:.1f} MB",
        "",
        f"The copy takes {1e3 * copy:.2f} ms, {nbytes / copy / 1e9:.1f} GB/s.",
        "",
        "| codec | bytes | ratio | relative error | encode GB/s | of copy | decode GB/s | of copy |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        speeds = [f"{nbytes / row[f'{way}_s'] / 1e9:.2f} | {row[f'{way}_of_copy']:.3f}" for way in ("encode", "decode")]
        lines.append(
            f"| {row['codec']} | {row['nbytes']:,} | {row['ratio']:.2f} | {row['error']:.2e} | {speeds[0]} | {speeds[1]} |"
        )
    lines += ["", "| for comparison | ms | of copy |", "|---|---:|---:|"]
    lines += [f"| {name} | {1e3 * s:.2f} | {copy / s:.3f} |" for name, s in result["torch_s"].items()]
    return "\n".join(lines)


def verdicts(result: dict[str, Any]) -> list[str]:
    """The goals, on the large tensor."""
    rows = {row["codec"]: row for row in result["rows"]}
    lines = []
    for codec, way, goal in GOALS:
        found = rows[words(codec)][f"{way}_of_copy"]
        lines.append(
            f"- {words(codec)} {way}: {found:.3f} of the copy, wanted ≥ {goal:.2f}: {'met' if found >= goal else 'NOT met'}"
        )
    mask, topk = rows[words(Mask())]["encode_s"], result["torch_s"]["torch: topk of 1 %"]
    lines.append(
        f"- {words(Mask())} encode: {1e3 * mask:.1f} ms, torch.topk alone {1e3 * topk:.1f} ms: {'met' if mask <= topk else 'NOT met'}"
    )
    return lines


def main() -> None:
    """Measure, print, write."""
    parser = parser_of("codecs", __doc__)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {name: measure(activation(shape), args.rounds) for name, shape in SHAPES.items()}
    page = Page("codecs", "codecs")
    setting = page.setting
    sections = [
        "# Codecs",
        f"{page.made_by}, one thread, Python {setting['python']}, torch {setting['torch']}.",
        "of copy: the time of copying the tensor into a preallocated, touched buffer divided by ours, which allocates its output. Medians.",
        "\n".join(verdicts(results["large"])),
        *[table(result) for result in results.values()],
    ]
    page.save(args.results, sections, results)


if __name__ == "__main__":
    main()
