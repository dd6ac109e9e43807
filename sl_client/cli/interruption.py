"""Signals end a client in an orderly way: the main thread waits for them while another one works."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Protocol, TypeVar

from sl_client.transport.connection import LEAVE_S, Interrupted
from sl_common.exits import HAND_OVER_S
from sl_common.host.signals import hang_up

T_co = TypeVar("T_co", covariant=True)


class Interruptible(Protocol[T_co]):
    """Long work that another thread can stop."""

    def run(self) -> T_co:
        """Work to the end; raise Interrupted after `interrupt`."""
        ...

    def interrupt(self) -> None:
        """Make `run` stop, from another thread."""
        ...


def run_until_interrupted(work: Interruptible[T_co]) -> T_co:
    """Run the work in a thread while the main thread, which must be the caller, waits for signals.

    An exception that a signal raises inside gRPC may leave gRPC's locks held, so the thread that works handles no
    signal. SIGINT, SIGTERM and SIGHUP end the work with Interrupted; a second one ends the process.
    """
    outcome: list[T_co | BaseException] = []
    over = threading.Event()  # Thread.join, once interrupted, believes that the thread has ended

    def run() -> None:
        try:
            outcome.append(work.run())
        except BaseException as error:  # handed to the main thread
            outcome.append(error)
        finally:
            over.set()

    sys.setswitchinterval(HAND_OVER_S)
    for number in (signal.SIGTERM, *hang_up()):
        signal.signal(number, signal.default_int_handler)
    thread = threading.Thread(target=run, name="runner", daemon=True)
    thread.start()
    try:
        over.wait()
    except KeyboardInterrupt:
        work.interrupt()
        over.wait(3 * LEAVE_S)
        raise Interrupted from None
    (result,) = outcome
    if isinstance(result, BaseException):
        raise result
    return result
