from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Iterable as _Iterable, Mapping as _Mapping, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DTYPE_UNSPECIFIED: _ClassVar[DType]
    FLOAT32: _ClassVar[DType]
    FLOAT64: _ClassVar[DType]
    FLOAT16: _ClassVar[DType]
    BFLOAT16: _ClassVar[DType]
    INT64: _ClassVar[DType]
    INT32: _ClassVar[DType]
    INT16: _ClassVar[DType]
    INT8: _ClassVar[DType]
    UINT8: _ClassVar[DType]
    BOOL: _ClassVar[DType]
    COMPLEX64: _ClassVar[DType]
    UINT16: _ClassVar[DType]
    UINT32: _ClassVar[DType]
    UINT64: _ClassVar[DType]
    FLOAT8_E4M3FN: _ClassVar[DType]
    FLOAT8_E5M2: _ClassVar[DType]
    FLOAT8_E4M3FNUZ: _ClassVar[DType]
    FLOAT8_E5M2FNUZ: _ClassVar[DType]
DTYPE_UNSPECIFIED: DType
FLOAT32: DType
FLOAT64: DType
FLOAT16: DType
BFLOAT16: DType
INT64: DType
INT32: DType
INT16: DType
INT8: DType
UINT8: DType
BOOL: DType
COMPLEX64: DType
UINT16: DType
UINT32: DType
UINT64: DType
FLOAT8_E4M3FN: DType
FLOAT8_E5M2: DType
FLOAT8_E4M3FNUZ: DType
FLOAT8_E5M2FNUZ: DType

class ClientFrame(_message.Message):
    __slots__ = ("seq", "ack", "hello", "ready", "smashed", "done", "alive", "leave", "fetch", "query", "timing", "chunk")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    SMASHED_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    FETCH_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    seq: int
    ack: int
    hello: Hello
    ready: Ready
    smashed: Smashed
    done: Done
    alive: Alive
    leave: Leave
    fetch: Fetch
    query: Query
    timing: Timing
    chunk: bytes
    def __init__(self, seq: _Optional[int] = ..., ack: _Optional[int] = ..., hello: _Optional[_Union[Hello, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., smashed: _Optional[_Union[Smashed, _Mapping]] = ..., done: _Optional[_Union[Done, _Mapping]] = ..., alive: _Optional[_Union[Alive, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ..., fetch: _Optional[_Union[Fetch, _Mapping]] = ..., query: _Optional[_Union[Query, _Mapping]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ServerFrame(_message.Message):
    __slots__ = ("seq", "ack", "greeting", "refusal", "welcome", "begin", "gradient", "bye", "aligned", "late", "offer", "lower", "scores", "chunk")
    SEQ_FIELD_NUMBER: _ClassVar[int]
    ACK_FIELD_NUMBER: _ClassVar[int]
    GREETING_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    BEGIN_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    ALIGNED_FIELD_NUMBER: _ClassVar[int]
    LATE_FIELD_NUMBER: _ClassVar[int]
    OFFER_FIELD_NUMBER: _ClassVar[int]
    LOWER_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    seq: int
    ack: int
    greeting: Greeting
    refusal: Refusal
    welcome: Welcome
    begin: Begin
    gradient: Gradient
    bye: Bye
    aligned: Aligned
    late: Late
    offer: Offer
    lower: Lower
    scores: Scores
    chunk: bytes
    def __init__(self, seq: _Optional[int] = ..., ack: _Optional[int] = ..., greeting: _Optional[_Union[Greeting, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., welcome: _Optional[_Union[Welcome, _Mapping]] = ..., begin: _Optional[_Union[Begin, _Mapping]] = ..., gradient: _Optional[_Union[Gradient, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ..., aligned: _Optional[_Union[Aligned, _Mapping]] = ..., late: _Optional[_Union[Late, _Mapping]] = ..., offer: _Optional[_Union[Offer, _Mapping]] = ..., lower: _Optional[_Union[Lower, _Mapping]] = ..., scores: _Optional[_Union[Scores, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("version", "software", "client", "life", "received", "resume", "shard_plus_one", "shards", "stream", "slow")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    LIFE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    SHARD_PLUS_ONE_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    SLOW_FIELD_NUMBER: _ClassVar[int]
    version: int
    software: str
    client: str
    life: bytes
    received: int
    resume: bool
    shard_plus_one: int
    shards: int
    stream: int
    slow: bool
    def __init__(self, version: _Optional[int] = ..., software: _Optional[str] = ..., client: _Optional[str] = ..., life: _Optional[bytes] = ..., received: _Optional[int] = ..., resume: bool = ..., shard_plus_one: _Optional[int] = ..., shards: _Optional[int] = ..., stream: _Optional[int] = ..., slow: bool = ...) -> None: ...

class Greeting(_message.Message):
    __slots__ = ("version", "software", "client", "received", "resumed", "incarnation")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    version: int
    software: str
    client: str
    received: int
    resumed: bool
    incarnation: int
    def __init__(self, version: _Optional[int] = ..., software: _Optional[str] = ..., client: _Optional[str] = ..., received: _Optional[int] = ..., resumed: bool = ..., incarnation: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "reason")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    code: str
    reason: str
    def __init__(self, code: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("config", "client", "shard", "shards", "run")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    config: str
    client: str
    shard: int
    shards: int
    run: str
    def __init__(self, config: _Optional[str] = ..., client: _Optional[str] = ..., shard: _Optional[int] = ..., shards: _Optional[int] = ..., run: _Optional[str] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("samples", "batches", "snapshots", "intact", "data", "builds", "torch")
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    INTACT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    BUILDS_FIELD_NUMBER: _ClassVar[int]
    TORCH_FIELD_NUMBER: _ClassVar[int]
    samples: int
    batches: int
    snapshots: _containers.RepeatedScalarFieldContainer[int]
    intact: bool
    data: DataSet
    builds: _containers.RepeatedCompositeFieldContainer[Build]
    torch: str
    def __init__(self, samples: _Optional[int] = ..., batches: _Optional[int] = ..., snapshots: _Optional[_Iterable[int]] = ..., intact: bool = ..., data: _Optional[_Union[DataSet, _Mapping]] = ..., builds: _Optional[_Iterable[_Union[Build, _Mapping]]] = ..., torch: _Optional[str] = ...) -> None: ...

class DataSet(_message.Message):
    __slots__ = ("train", "test", "train_sha256", "test_sha256", "means", "inputs")
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    TEST_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SHA256_FIELD_NUMBER: _ClassVar[int]
    TEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    MEANS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    train: int
    test: int
    train_sha256: bytes
    test_sha256: bytes
    means: _containers.RepeatedScalarFieldContainer[float]
    inputs: Inputs
    def __init__(self, train: _Optional[int] = ..., test: _Optional[int] = ..., train_sha256: _Optional[bytes] = ..., test_sha256: _Optional[bytes] = ..., means: _Optional[_Iterable[float]] = ..., inputs: _Optional[_Union[Inputs, _Mapping]] = ...) -> None: ...

class Inputs(_message.Message):
    __slots__ = ("dtype", "low", "high", "mean", "std", "digest")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    dtype: str
    low: float
    high: float
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    digest: str
    def __init__(self, dtype: _Optional[str] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ..., digest: _Optional[str] = ...) -> None: ...

class Build(_message.Message):
    __slots__ = ("part", "layout_sha256", "layout", "modules_sha256", "modules", "probe")
    PART_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_SHA256_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    MODULES_SHA256_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    PROBE_FIELD_NUMBER: _ClassVar[int]
    part: str
    layout_sha256: bytes
    layout: str
    modules_sha256: bytes
    modules: str
    probe: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, part: _Optional[str] = ..., layout_sha256: _Optional[bytes] = ..., layout: _Optional[str] = ..., modules_sha256: _Optional[bytes] = ..., modules: _Optional[str] = ..., probe: _Optional[_Iterable[float]] = ...) -> None: ...

class Begin(_message.Message):
    __slots__ = ("round", "rounds", "wave", "wave_size", "evaluate", "steps", "first", "lr", "weights", "upload", "directive", "slice", "slices", "samples", "parts", "checkpoint", "restore", "intact")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    WAVE_FIELD_NUMBER: _ClassVar[int]
    WAVE_SIZE_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LR_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    SLICE_FIELD_NUMBER: _ClassVar[int]
    SLICES_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    RESTORE_FIELD_NUMBER: _ClassVar[int]
    INTACT_FIELD_NUMBER: _ClassVar[int]
    round: int
    rounds: int
    wave: int
    wave_size: int
    evaluate: bool
    steps: int
    first: int
    lr: float
    weights: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    upload: _containers.RepeatedScalarFieldContainer[str]
    directive: Directive
    slice: int
    slices: int
    samples: int
    parts: _containers.RepeatedScalarFieldContainer[str]
    checkpoint: int
    restore: int
    intact: bool
    def __init__(self, round: _Optional[int] = ..., rounds: _Optional[int] = ..., wave: _Optional[int] = ..., wave_size: _Optional[int] = ..., evaluate: bool = ..., steps: _Optional[int] = ..., first: _Optional[int] = ..., lr: _Optional[float] = ..., weights: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., upload: _Optional[_Iterable[str]] = ..., directive: _Optional[_Union[Directive, _Mapping]] = ..., slice: _Optional[int] = ..., slices: _Optional[int] = ..., samples: _Optional[int] = ..., parts: _Optional[_Iterable[str]] = ..., checkpoint: _Optional[int] = ..., restore: _Optional[int] = ..., intact: bool = ...) -> None: ...

class Directive(_message.Message):
    __slots__ = ("send", "update", "align", "warm")
    SEND_FIELD_NUMBER: _ClassVar[int]
    UPDATE_FIELD_NUMBER: _ClassVar[int]
    ALIGN_FIELD_NUMBER: _ClassVar[int]
    WARM_FIELD_NUMBER: _ClassVar[int]
    send: bool
    update: bool
    align: bool
    warm: bool
    def __init__(self, send: bool = ..., update: bool = ..., align: bool = ..., warm: bool = ...) -> None: ...

class Smashed(_message.Message):
    __slots__ = ("step", "round", "wave", "train", "needs_grad", "y", "z")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WAVE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_FIELD_NUMBER: _ClassVar[int]
    NEEDS_GRAD_FIELD_NUMBER: _ClassVar[int]
    Y_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    step: int
    round: int
    wave: int
    train: bool
    needs_grad: bool
    y: Tensor
    z: Tensor
    def __init__(self, step: _Optional[int] = ..., round: _Optional[int] = ..., wave: _Optional[int] = ..., train: bool = ..., needs_grad: bool = ..., y: _Optional[_Union[Tensor, _Mapping]] = ..., z: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Gradient(_message.Message):
    __slots__ = ("step", "loss", "correct", "dz")
    STEP_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    CORRECT_FIELD_NUMBER: _ClassVar[int]
    DZ_FIELD_NUMBER: _ClassVar[int]
    step: int
    loss: float
    correct: int
    dz: Tensor
    def __init__(self, step: _Optional[int] = ..., loss: _Optional[float] = ..., correct: _Optional[int] = ..., dz: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Aligned(_message.Message):
    __slots__ = ("round", "wave", "weights", "parts", "before", "after")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WAVE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    round: int
    wave: int
    weights: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    parts: _containers.RepeatedScalarFieldContainer[str]
    before: float
    after: float
    def __init__(self, round: _Optional[int] = ..., wave: _Optional[int] = ..., weights: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., parts: _Optional[_Iterable[str]] = ..., before: _Optional[float] = ..., after: _Optional[float] = ...) -> None: ...

class Late(_message.Message):
    __slots__ = ("round", "wave")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WAVE_FIELD_NUMBER: _ClassVar[int]
    round: int
    wave: int
    def __init__(self, round: _Optional[int] = ..., wave: _Optional[int] = ...) -> None: ...

class Done(_message.Message):
    __slots__ = ("round", "wave", "steps", "samples", "loss_sum", "weights", "digests", "parts")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    WAVE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    round: int
    wave: int
    steps: int
    samples: int
    loss_sum: float
    weights: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    digests: _containers.RepeatedCompositeFieldContainer[Digest]
    parts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, round: _Optional[int] = ..., wave: _Optional[int] = ..., steps: _Optional[int] = ..., samples: _Optional[int] = ..., loss_sum: _Optional[float] = ..., weights: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., digests: _Optional[_Iterable[_Union[Digest, _Mapping]]] = ..., parts: _Optional[_Iterable[str]] = ...) -> None: ...

class Digest(_message.Message):
    __slots__ = ("part", "sha256")
    PART_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    part: str
    sha256: bytes
    def __init__(self, part: _Optional[str] = ..., sha256: _Optional[bytes] = ...) -> None: ...

class Alive(_message.Message):
    __slots__ = ("samples",)
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    samples: int
    def __init__(self, samples: _Optional[int] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ("reason", "finished")
    REASON_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    reason: str
    finished: bool
    def __init__(self, reason: _Optional[str] = ..., finished: bool = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("config", "lower_sha256", "inputs", "build", "torch")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    LOWER_SHA256_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    BUILD_FIELD_NUMBER: _ClassVar[int]
    TORCH_FIELD_NUMBER: _ClassVar[int]
    config: str
    lower_sha256: bytes
    inputs: Inputs
    build: Build
    torch: str
    def __init__(self, config: _Optional[str] = ..., lower_sha256: _Optional[bytes] = ..., inputs: _Optional[_Union[Inputs, _Mapping]] = ..., build: _Optional[_Union[Build, _Mapping]] = ..., torch: _Optional[str] = ...) -> None: ...

class Fetch(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Lower(_message.Message):
    __slots__ = ("weights", "parts")
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    weights: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    parts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, weights: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., parts: _Optional[_Iterable[str]] = ...) -> None: ...

class Query(_message.Message):
    __slots__ = ("step", "z")
    STEP_FIELD_NUMBER: _ClassVar[int]
    Z_FIELD_NUMBER: _ClassVar[int]
    step: int
    z: Tensor
    def __init__(self, step: _Optional[int] = ..., z: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Scores(_message.Message):
    __slots__ = ("step", "scores")
    STEP_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    step: int
    scores: Tensor
    def __init__(self, step: _Optional[int] = ..., scores: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("codec", "dtype", "shape", "nbytes", "params")
    CODEC_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    NBYTES_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    codec: str
    dtype: DType
    shape: _containers.RepeatedScalarFieldContainer[int]
    nbytes: int
    params: bytes
    def __init__(self, codec: _Optional[str] = ..., dtype: _Optional[_Union[DType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., nbytes: _Optional[int] = ..., params: _Optional[bytes] = ...) -> None: ...

class NamedTensor(_message.Message):
    __slots__ = ("part", "name", "tensor")
    PART_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    part: str
    name: str
    tensor: Tensor
    def __init__(self, part: _Optional[str] = ..., name: _Optional[str] = ..., tensor: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("step", "forward", "encode", "round_trip", "decode", "backward")
    STEP_FIELD_NUMBER: _ClassVar[int]
    FORWARD_FIELD_NUMBER: _ClassVar[int]
    ENCODE_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    BACKWARD_FIELD_NUMBER: _ClassVar[int]
    step: int
    forward: float
    encode: float
    round_trip: float
    decode: float
    backward: float
    def __init__(self, step: _Optional[int] = ..., forward: _Optional[float] = ..., encode: _Optional[float] = ..., round_trip: _Optional[float] = ..., decode: _Optional[float] = ..., backward: _Optional[float] = ...) -> None: ...

class Ping(_message.Message):
    __slots__ = ("payload", "software", "version", "reply_bytes")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    software: str
    version: int
    reply_bytes: int
    def __init__(self, payload: _Optional[bytes] = ..., software: _Optional[str] = ..., version: _Optional[int] = ..., reply_bytes: _Optional[int] = ...) -> None: ...
