"""Measures one training step over TLS against the same in plaintext, in interleaved pairs.

python -m benchmarks.tls [--pairs 7] [--workload cnn] [--steps 60]; `make bench-tls`. The certificates are made by `sl-server certs`,
TLS is mutual and the client shows a token: both cost a handshake, not a step. It writes tls.json and tls.md into benchmarks/results.
"""

from __future__ import annotations

import secrets
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from benchmarks import sides
from benchmarks.page import Page, parser_of
from benchmarks.processes import BenchmarkFailed, script
from benchmarks.report import PHASES
from benchmarks.workloads import WORKLOADS

Runs = Mapping[str, Sequence[sides.Result]]


def options(folder: Path) -> dict[str, list[object]]:
    """What a server and a client add to their commands for mutual TLS and tokens; the files are made here."""
    subprocess.run(script("sl-server", "certs", folder, "--clients", 1), check=True, stdout=subprocess.DEVNULL)
    token = secrets.token_hex(32)
    for name, text in (("tokens.toml", f'c0 = "{token}"\n'), ("c0.token", token)):
        path = folder / name
        path.touch(0o600)
        path.write_text(text)
    ca, own = folder / "ca.pem", ("--cert", folder / "c0.pem", "--key", folder / "c0.key")
    serves = ("--cert", folder / "server.pem", "--key", folder / "server.key", "--client-ca", ca)
    return {
        "server": [*serves, "--tokens", folder / "tokens.toml"],
        "client": ["--ca", ca, *own, "--token", f"@{folder}/c0.token"],
    }


def ratios(runs: Runs) -> list[float]:
    """Steps a second over TLS of those in plaintext, pair by pair."""
    pairs = zip(runs["TLS"], runs["plaintext"], strict=True)
    return [tls["steps_per_s"] / plain["steps_per_s"] for tls, plain in pairs]


def verdict(workload: str, runs: Runs) -> str:
    """What was measured."""
    found = ratios(runs)
    return (
        f"{workload}: {median(found):.3f} of the steps/s in plaintext (pairs from {min(found):.3f} to {max(found):.3f})"
    )


def table(runs: Runs) -> str:
    """Markdown: rates, and where the time goes."""
    lines = ["| | plaintext | TLS |", "|---|---:|---:|"]
    for text, choose in (("median", median), ("lowest", min), ("highest", max)):
        cells = [f"{choose([run['steps_per_s'] for run in runs[side]]):.2f}" for side in ("plaintext", "TLS")]
        lines.append(f"| steps/s, {text} | {' | '.join(cells)} |")
    for phase, text in PHASES.items():
        found = {
            side: [run["phases"][phase] for run in taken if phase in run["phases"]] for side, taken in runs.items()
        }
        if all(found.values()):
            cells = [f"{median(found[side]):.3f}" for side in ("plaintext", "TLS")]
            lines.append(f"| {text}, ms | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = parser_of("tls", __doc__)
    parser.add_argument("--pairs", type=int, default=7, help="how often each side runs")
    parser.add_argument("--workload", choices=tuple(WORKLOADS), default="cnn")
    parser.add_argument("--steps", type=int, help="of one run that count, by default 60 for cnn; as many warm up")
    args = parser.parse_args()
    workload = WORKLOADS[args.workload]
    steps = args.steps or workload.steps
    runs: dict[str, list[sides.Result]] = {"plaintext": [], "TLS": []}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        extra = {"plaintext": {}, "TLS": options(Path(folder, "certs"))}
        for pair in range(args.pairs):
            for side in list(runs) if pair % 2 else list(runs)[::-1]:  # neither is always the first
                try:
                    runs[side].append(sides.ours(workload, steps, **extra[side]))
                except BenchmarkFailed as error:
                    sys.exit(f"error: {error}")
            rates = ", ".join(f"{side} {found[-1]['steps_per_s']:.2f}" for side, found in runs.items())
            print(f"{workload.name} {pair + 1}/{args.pairs}: {rates} steps/s", flush=True)
    page = Page("tls", "tls")
    sections = [
        "# A step over TLS",
        f"{page.made_by}, torch {page.setting['torch']}, grpcio {page.setting['grpcio']}; images: {page.setting['images']}.",
        f"`{workload.name}` ({workload.text}), batch 64, one server and one client process on loopback, one torch thread each; "
        f"{steps} steps a run after as many to warm up, {args.pairs} interleaved pairs. Mutual TLS and a token, as "
        "`sl-server certs` makes the files.",
        f"- {verdict(workload.name, runs)}",
        table(runs),
    ]
    page.save(args.results, sections, {"workload": workload.name, "steps": steps, "ratios": ratios(runs), "runs": runs})


if __name__ == "__main__":
    main()
