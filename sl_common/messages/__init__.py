"""The vocabulary: messages between client and server, events of the coordinator, facts for the outside.

Frozen values without behaviour; how they become bytes is `sl_common.wire`'s.
"""

from sl_common.lazy_exports import lazy_exports

__getattr__, __all__ = lazy_exports(
    __name__,
    facts="AuxAligned BatchEvaluated ClientAway ClientBack ClientDone ClientJoined ClientLate ClientLeft ClientReady ClientsDoubtful Evaluated Fact RedoSpent RoundEnded RunEnded Score Trained WaveBegun WentBack",
    inference="Fetch InferenceReply InferenceRequest Lower Offer Query Scores",
    training="Advanced Aligned Alive Begin Bye Directive Done Epoch Event Failed Gradient Joined Late Leave Left Logged MOST_LATE Message MessageDigest Newest Ready Restored Saved Smashed Stopped Tick ToClient ToServer WIRE_KINDS Welcome WireKind kind_of payload_of",
)
