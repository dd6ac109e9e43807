"""Messages to numbered frames and back, exactly once and in order whatever happens to the streams.

Law: this is the one package that uses protobuf, and it opens no socket and reads no clock.

`endpoint` is one side of a conversation. It is composed of `framing` (cuts messages into frames), `delivery` (numbers,
acknowledges and resends them), `incoming` (checks and gathers received frames) and `codings` (context of each encode
and decode). `formats` is the table of all messages, `values` the formats of single fields, `translate` applies them to
one message. `fields` bounds the work on a frame before it is parsed, `assembly` collects a body, `pace` sends on slow
links, `causes` and `outgoing` check acknowledgements, `accounting` counts bytes by kind, `greeting` opens a stream,
`eventlog` stores the events of a coordinator.
"""

from sl_common.wire.endpoint import Endpoint, Received
from sl_common.wire.frame import CHUNK_BYTES, Frame
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
