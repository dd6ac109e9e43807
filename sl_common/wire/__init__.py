"""Messages as numbered frames, and back, exactly once and in order whatever the streams do. The one package that knows protobuf.

`translate` turns a message into a typed header and a list of tensors, `assembly` gathers a body by counting its bytes,
`fields` bounds the work on a frame before it is parsed, `endpoint` numbers, chunks and resends, `pace` does so on slow links,
`causes` and `outgoing` check acknowledgements, `greeting` opens a stream, `eventlog` writes a coordinator's events down.
"""

from sl_common.wire.endpoint import CHUNK_BYTES, Endpoint, Frame, Received
from sl_common.wire.greeting import SLOW_S, WIRE_VERSION, Greeting, Hello, Refusal, read_answer
from sl_common.wire.timing import Timing

__all__ = [
    "CHUNK_BYTES",
    "SLOW_S",
    "WIRE_VERSION",
    "Endpoint",
    "Frame",
    "Greeting",
    "Hello",
    "Received",
    "Refusal",
    "Timing",
    "read_answer",
]
