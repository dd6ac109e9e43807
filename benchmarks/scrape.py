"""Measures how long a scrape takes of a server with 200 connected clients, each with series of its own.

python -m benchmarks.scrape [--clients 10 200] [--scrapes 40]; `make bench-scrape`. It writes scrape.json and scrape.md into
benchmarks/results. The server is `sl-server run` in a process of its own, the clients are those of benchmarks/crowd_driver.py. It is
scraped while they train, and while they are held still (SIGSTOP) with all their streams open.
"""

from __future__ import annotations

import signal
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.crowd import CONFIG, PRESETS
from benchmarks.page import Page, parser_of
from benchmarks.processes import BenchmarkFailed, module, script, started

LIMIT_S = 240.0
PRESET = "parallel"
NOTE = (
    "The network of [crowd.md](crowd.md). A scrape is one HTTP request on loopback, from connecting to the last byte, uncompressed. "
    "*Still*: the clients' process is stopped, their streams are open. *Training*: the server works for them meanwhile, and shares its "
    "interpreter with the scrape and two cores with the clients, so that part measures them too."
)


def scrape(port: int) -> tuple[float, bytes]:
    """Seconds, and what came."""
    began = time.perf_counter()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read()
    return time.perf_counter() - began, text


def quantiles(port: int, scrapes: int) -> dict[str, float]:
    """Of so many scrapes, in ms; a pause after each, as between real ones."""
    found = []
    for _ in range(scrapes):
        found.append(1e3 * scrape(port)[0])
        time.sleep(0.1)
    found.sort()
    return {"median": median(found), "p95": found[int(0.95 * (len(found) - 1))], "max": found[-1]}


def measure(clients: int, scrapes: int) -> dict[str, Any]:
    """One server with so many clients."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        toml = Path(folder, "run.toml")
        toml.write_text(CONFIG.format(preset=PRESET, merge=PRESETS[PRESET], clients=clients, rounds=100_000, steps=5))
        to = "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0", "--out", Path(folder, "out"), "--json"
        with started(script("sl-server", "run", toml, *to, "--set", f"metrics.clients={clients}")) as server:
            address = server.line("address", LIMIT_S)["address"]
            port = server.line("port", LIMIT_S)["port"]
            command = module("crowd_driver", "--address", address, "--config", toml, "--clients", clients)
            with started(command) as drivers:
                while server.line("event", LIMIT_S)["event"] != "round":  # so that every client has been counted
                    pass
                training = quantiles(port, scrapes)
                drivers.signal(signal.SIGSTOP)
                time.sleep(1.0)
                still = quantiles(port, scrapes)
                text = scrape(port)[1].decode()
                drivers.signal(signal.SIGKILL)
            server.signal(signal.SIGKILL)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    rows = sum(line.startswith("sl_client_connected{") and line.endswith(" 1") for line in lines)
    if rows != clients:
        raise BenchmarkFailed(f"{rows} of {clients} clients were connected when scraped")
    return {"clients": clients, "series": len(lines), "kb": len(text) / 1e3, "still": still, "training": training}


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| clients | series | KB | still, ms: median | p95 | most | training, ms: median | p95 | most |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        cells = [f"{r[state][key]:.1f}" for state in ("still", "training") for key in ("median", "p95", "max")]
        lines.append(f"| {r['clients']} | {r['series']:,} | {r['kb']:.0f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, write."""
    parser = parser_of("scrape", __doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[10, 200])
    parser.add_argument("--scrapes", type=int, default=40)
    args = parser.parse_args()
    results = []
    for clients in args.clients:
        results.append(measure(clients, args.scrapes))
        print(results[-1], flush=True)
    page = Page("scrape", "scrape")
    made = f"{page.made_by}, Python {page.setting['python']}."
    page.save(args.results, ["# A scrape of many clients' metrics", made, NOTE, table(results)], {"results": results})


if __name__ == "__main__":
    main()
