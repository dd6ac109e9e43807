"""Laws of every codec in the union; a new member is tested before anyone writes a test for it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from drawn import bytes_of, random_tensor
from golden_codecs import GOLDEN, golden_of
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from unions import members

import sl_common.codec as union_of
from sl_common.codec import Codec, Coding, Identity, Layout, Link, LinkRole, Packed, Scheme
from sl_common.codec.packed import DTYPES
from sl_common.errors import Diverged, WireError
from sl_common.kinds import is_real

VARIANTS: list[Any] = [
    union_of.Float8(format="e4m3"),
    union_of.Float8(format="e5m2"),
    *[union_of.Uniform(bits=bits) for bits in range(1, 8)],
    union_of.Uniform(point="middle", bits=3),
    union_of.Uniform(rounding="stochastic", bits=5),
    *[union_of.Mask(r=0.9, b=bits) for bits in (1, 3, 5, 7, 8)],
    union_of.Mask(r=0.0),
    union_of.Mask(r=0.5, scope="sample", values="float16", rounding="floor"),
    union_of.Mask(r=0.5, signed=True),
    union_of.Mask(r=0.5, signed=False),
    union_of.TopK(r=0.0),
    union_of.TopK(r=0.5, scope="batch", key="signed", values="float16"),
    union_of.TopK(r=0.999),
    union_of.RandTopK(r=0.5, alpha=1.0),
    union_of.RandTopK(r=0.5, alpha=0.3, scope="batch", key="signed", evaluate="random"),
    union_of.Masked(of=union_of.Float8()),
    union_of.Deflate(of=union_of.Mask(), level=9),
    union_of.Feedback(of=union_of.Uniform(bits=2)),
]
CODECS: list[Any] = [member() for member in members(Codec)] + VARIANTS
LOSSY = [one for one in CODECS if getattr(one, "of", one) != union_of.Identity()]
NAMES = {name: getattr(union_of, name) for name in union_of.__all__}
# Encoding what was decoded gives the same again: not where the end points move (middle), where filtered zeros outrank kept
# negatives (mask without signs), where levels shrink (floor) or where something is drawn.
STABLE = [
    one
    for one in LOSSY
    if getattr(one, "point", "") != "middle"
    and getattr(one, "rounding", "") not in ("stochastic", "floor")
    and getattr(one, "signed", None) is not False
    and one.kind != "randtopk"
]
POSSIBLE = [
    (direction, one)
    for direction in get_args(LinkRole)
    for one in CODECS
    if direction == "down" or not (one.uses_like or (one.kind == "feedback" and direction == "up"))
]
TENSORS: dict[str, Tensor] = {
    "empty": torch.empty(0),
    "no rows": torch.empty(0, 3),
    "no columns": torch.empty(3, 0, 2),
    "scalar": torch.tensor(-1.5),
    "one element": torch.tensor([0.25]),
    **{f"{rank}-d": torch.linspace(-3, 5, 6**rank).reshape((6,) * rank) for rank in range(1, 6)},
    "transposed": torch.linspace(-1, 1, 24).reshape(2, 3, 4).transpose(0, 2),
    "every other": torch.linspace(-1, 1, 24)[::2],
    "expanded": torch.tensor([[1.0], [2.0]]).expand(2, 5),
    "channels last": torch.linspace(0, 1, 48).reshape(1, 3, 4, 4).to(memory_format=torch.channels_last),
    "zeros": torch.zeros(4, 4),
    "needs grad": torch.ones(3, requires_grad=True),
}


def coding_for(codec: Scheme, x: Tensor) -> Coding:
    return Coding(like=torch.ones_like(x) if codec.uses_like else None, draw=(1,))


def through(codec: Scheme, x: Tensor) -> Tensor:
    """As the peer has it: from bytes alone, after the check."""
    packed = codec.encode(x, coding_for(codec, x))
    codec.check(packed.layout)
    received = Packed(layout=packed.layout, data=memoryview(bytearray(packed.data)))
    return codec.decode(received, coding_for(codec, x))


def decode_checked(codec: Scheme, packed: Packed, coding: Coding) -> Tensor:
    """What a masked gradient's header lacks, only decoding sees: how many values there are, the activation says."""
    if not codec.uses_like:
        codec.check(packed.layout)
        return torch.empty(0)
    codec.check(packed.layout)
    return codec.decode(packed, coding)


def tampered(layout: Layout) -> dict[str, Layout]:
    return {
        "a byte more": replace(layout, nbytes=layout.nbytes + 1),
        "a byte less": replace(layout, nbytes=layout.nbytes - 1),
        "no bytes": replace(layout, nbytes=0),
        "more parameters": replace(layout, params=layout.params + b"x"),
        "a larger shape": replace(layout, shape=(layout.shape[0] * 9, *layout.shape[1:])),
        "an empty shape": replace(layout, shape=(0, *layout.shape)),
    }


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_a_codec_is_its_configuration(codec: Scheme) -> None:
    union: TypeAdapter[Codec] = TypeAdapter(Codec)
    assert isinstance(codec, Scheme)
    assert union.validate_json(codec.model_dump_json()) == codec
    assert eval(repr(codec), dict(NAMES)) == codec
    with pytest.raises(ValidationError, match="frozen"):
        codec.kind = "another"
    with pytest.raises(ValidationError, match="forbidden"):
        type(codec)(nonsense=1)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("name", TENSORS)
def test_shape_and_dtype_survive(codec: Scheme, name: str) -> None:
    x = TENSORS[name]
    back = through(codec, x)
    assert (back.shape, back.dtype) == (x.shape, x.dtype)
    assert bool(torch.isfinite(back).all())
    assert not back.requires_grad


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("name", TENSORS)
def test_the_header_says_what_is_there(codec: Scheme, name: str) -> None:
    x = TENSORS[name]
    packed = codec.encode(x, coding_for(codec, x))
    layout = packed.layout
    assert (layout.codec, layout.dtype, layout.shape) == (codec.kind, x.dtype, tuple(x.shape))
    assert layout.nbytes == len(packed.data)
    assert layout.decoded_nbytes == x.numel() * x.element_size()
    assert len(layout.params) <= 64


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_encoding_is_a_pure_function(codec: Scheme) -> None:
    x = torch.linspace(-3, 5, 60).reshape(4, 15)
    before, state = x.clone(), torch.get_rng_state()
    one, other = (codec.encode(x, coding_for(codec, x)) for _ in range(2))
    assert bytes(one.data) == bytes(other.data)
    assert (one.layout.nbytes, one.layout.params) == (other.layout.nbytes, other.layout.params)
    assert torch.equal(x, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("what", tampered(Layout(codec="", dtype=torch.float32, shape=(1,), nbytes=1)))
def test_a_header_that_it_could_not_have_written_is_refused(codec: Scheme, what: str) -> None:
    x = torch.linspace(-3, 5, 60).reshape(4, 15)
    layout = codec.encode(x, coding_for(codec, x)).layout
    codec.check(layout)
    wrong = tampered(layout)[what]
    with pytest.raises(WireError, match="codec "):
        decode_checked(codec, Packed(layout=wrong, data=bytearray(wrong.nbytes)), coding_for(codec, x))


FLOATING = [dtype for dtype in DTYPES if is_real(dtype)]


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
def test_every_floating_point_type_survives(codec: Scheme, dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 5, 60).reshape(4, 15).to(dtype)
    back = through(codec, x)
    assert (back.shape, back.dtype) == (x.shape, dtype)
    assert float((back.double() - x.double()).norm()) <= float(x.double().norm())


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("size", ["huge", "tiny"])
def test_huge_and_tiny_magnitudes_stay_finite(codec: Scheme, dtype: torch.dtype, size: str) -> None:
    info = torch.finfo(dtype)
    extreme = info.max if size == "huge" else info.smallest_normal / 4
    x = torch.tensor([extreme, -extreme, extreme / 3, 0.0, -extreme / 7] * 5, dtype=dtype)
    back = through(codec, x)
    assert bool(torch.isfinite(back).all())
    assert float(back.double().abs().max()) <= 2 * extreme


@pytest.mark.parametrize("codec", CODECS, ids=repr)
@pytest.mark.parametrize("name", TENSORS)
def test_the_encoded_size_is_the_formulas(codec: Scheme, name: str) -> None:
    x = TENSORS[name]
    least, most = codec.sizes(x.dtype, tuple(x.shape))
    nbytes = codec.encode(x, coding_for(codec, x)).layout.nbytes
    assert least <= nbytes <= most
    if codec.kind not in ("masked", "deflate") and getattr(codec, "signed", False) is not None:
        assert least == most


@pytest.mark.parametrize("codec", LOSSY, ids=repr)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 29, 59])
def test_nan_and_inf_are_our_own_fault(codec: Scheme, value: float, at: int) -> None:
    x = torch.linspace(-3, 5, 60).reshape(4, 15)
    x.view(-1)[at] = value
    with pytest.raises(Diverged, match="holds NaN or Inf"):
        codec.encode(x, coding_for(codec, x))


@pytest.mark.parametrize("codec", STABLE, ids=repr)
@pytest.mark.parametrize("name", TENSORS)
def test_what_was_decoded_encodes_to_itself(codec: Scheme, name: str) -> None:
    once = through(codec, TENSORS[name])
    torch.testing.assert_close(through(codec, once), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("codec", LOSSY, ids=repr)
@pytest.mark.parametrize("length", [*range(1, 34), 2047, 2048, 8191, 8193])
def test_odd_lengths_ties_and_zeros(codec: Scheme, length: int) -> None:
    for x in (torch.zeros(length), torch.ones(length), torch.arange(length).remainder(3).float() - 1):
        back = through(codec, x)
        assert float((back - x).abs().max()) <= 1.0
        if not x.any():
            assert not back.any()


@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_the_format_cannot_drift(codec: Scheme) -> None:
    """The bytes of one tensor are committed. A change that is meant needs `python tests/golden_codecs.py`, and a reason in the commit."""
    if codec.kind == "deflate":
        pytest.skip("its bytes are zlib's")
    known = json.loads(GOLDEN.read_text())
    assert golden_of(codec) == known[repr(codec)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_identity_is_exact_in_every_dtype_and_bit(dtype: torch.dtype) -> None:
    x = random_tensor(dtype, (7, 5), seed=3)
    assert bytes_of(through(Identity(), x)) == bytes_of(x)
    assert bytes_of(through(Identity(), x.T)) == bytes_of(x.T)
    assert Identity().encode(x, Coding()).layout.nbytes == x.numel() * x.element_size()


def test_identity_is_little_endian_and_row_major() -> None:
    x = torch.tensor([[1, 2], [3, 4]], dtype=torch.int16).T
    assert bytes(Identity().encode(x, Coding()).data).hex() == "0100030002000400"


# --- what both sides agreed on


@pytest.mark.parametrize(("direction", "codec"), POSSIBLE, ids=str)
def test_another_codec_than_agreed_is_refused_with_both_names(direction: LinkRole, codec: Scheme) -> None:
    link = Link(**{direction: codec})
    x = torch.ones(3)
    layout = codec.encode(x, coding_for(codec, x)).layout
    assert link.agreed(direction, layout) == codec
    with pytest.raises(WireError, match=f"peer used codec 'topk9' for {direction}, this run says '{codec.kind}'"):
        link.agreed(direction, replace(layout, codec="topk9"))


@pytest.mark.parametrize(("direction", "codec"), POSSIBLE, ids=str)
def test_integers_travel_as_they_are_whatever_the_codec(direction: LinkRole, codec: Scheme) -> None:
    link = Link(**{direction: codec})
    layout = Identity().encode(torch.arange(5), Coding()).layout
    assert link.agreed(direction, layout) == Identity()
    with pytest.raises(WireError, match="peer used codec 'topk9'"):
        link.agreed(direction, replace(layout, codec="topk9"))


@pytest.mark.parametrize("direction", get_args(LinkRole))
def test_what_was_agreed_is_checked_too(direction: LinkRole) -> None:
    layout = Identity().encode(torch.arange(5.0), Coding()).layout
    with pytest.raises(WireError, match=r"\(5,\) takes 20 bytes, header says 21"):
        Link().agreed(direction, replace(layout, nbytes=21))


def test_a_link_survives_json() -> None:
    link = Link(**dict.fromkeys(get_args(LinkRole), union_of.Deflate(of=union_of.Mask(b=3))))
    assert Link.model_validate_json(link.model_dump_json()) == link


@pytest.mark.parametrize("direction", ["up", "state"])
def test_a_codec_that_needs_the_activation_is_for_gradients_alone(direction: str) -> None:
    with pytest.raises(ValidationError, match="kind 'masked' is for down alone"):
        Link(**{direction: union_of.Masked()})


def test_feedback_is_not_for_activations() -> None:
    with pytest.raises(ValidationError, match="activations are of other samples each time"):
        Link(up=union_of.Feedback())
