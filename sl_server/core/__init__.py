"""The server as a deterministic state machine: events in, one Turn of messages, facts and jobs out.

Pure: no clock, thread, file or socket; the same events in the same order give the same bits.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    alignments="Job",
    coordinator="Coordinator",
    digests="AdvanceDigests digest_difference fields_of",
    identity="StreamIdentity admit",
    outbox="Messages Turn",
    preflight="most_in_batch preflight",
    recordings="check_recorded",
    roster="Member",
    sessions="Opened Session Sessions",
)
