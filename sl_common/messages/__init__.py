"""The vocabulary: messages between client and server, events of the coordinator, facts for the outside.

Law: all are frozen values without behaviour. `sl_common.wire` converts messages to bytes and back.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    events="Advanced Event Failed Joined Left Logged MessageDigest Restored Saved Stopped Tick",
    facts=(
        "AuxAligned BatchEvaluated ClientAway ClientBack ClientDone ClientJoined ClientLate ClientLeft "
        "ClientReady ClientsDoubtful Evaluated Fact RedoSpent RoundEnded RunEnded Score Trained WaveBegun "
        "WentBack"
    ),
    inference="Fetch InferenceReply InferenceRequest Lower Offer Query Scores",
    training=(
        "Aligned Alive Begin Bye Directive Done Epoch Gradient Late Leave MOST_LATE Message Newest Ready "
        "Smashed ToClient ToServer Welcome"
    ),
)
