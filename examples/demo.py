"""`make demo`: one server and four clients, each a process of its own, train one network over gRPC on this machine."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

from sl_client.data.fashion_mnist import find, places
from sl_common.errors import DataError

CONFIG = Path(__file__).with_name("demo.toml")
CLIENTS = 4
# On digits an epoch is small: more rounds of it, in smaller batches and steps.
ON_DIGITS = {"data.name": "digits", "data.batch_size": "16", "run.rounds": "8", "client.wave": "{ steps = 23 }"} | {
    f"{side}.optimizer.lr": "0.01" for side in ("client", "server")
}


def main() -> int:
    """Run the demo; the server's exit code."""
    out = Path("runs") / f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    out.mkdir(parents=True)
    overrides = {} if have_fashion_mnist() else ON_DIGITS
    print(
        f"one server and {CLIENTS} clients on this machine, {overrides.get('data.name', 'fashion-mnist')}; logs of the clients in {out}/"
    )
    address = f"127.0.0.1:{free_port()}"
    settings = [word for key, value in overrides.items() for word in ("--set", f"{key}={value}")]
    server = start(
        "sl-server", "run", str(CONFIG), "--listen", address, "--metrics", "127.0.0.1:0", "--out", str(out), *settings
    )
    clients = []
    try:
        for number in range(CLIENTS):
            with (out / f"client-{number + 1}.log").open("w") as log:
                clients.append(start("sl-client", "run", "--server", address, log=log))
        return server.wait()
    except KeyboardInterrupt:  # the terminal has told the others too
        return server.wait()
    finally:
        for process in clients:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=15)
        for process in (server, *clients):
            if process.poll() is None:
                process.terminate()


def have_fashion_mnist() -> bool:
    """True if its files are on this machine."""
    try:
        find(places(None))
    except DataError:
        return False
    return True


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: str, *arguments: str, log=None) -> subprocess.Popen[bytes]:
    """One of our commands, from the environment that runs this."""
    return subprocess.Popen([str(Path(sys.executable).with_name(command)), *arguments], stdout=log, stderr=log)


if __name__ == "__main__":
    raise SystemExit(main())
