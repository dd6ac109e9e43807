"""Laws of every codec in the union; a new member is tested before anyone writes a test for it."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from drawn import bytes_of, random_tensor
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from unions import members

from sl_common.codec import Codec, Coding, Direction, Identity, Layout, Link, Packed, Scheme
from sl_common.codec.packed import DTYPES
from sl_common.errors import WireError

CODECS = [member() for member in members(Codec)]
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
    return Coding(like=x.detach() if codec.uses_like else None, draw=(1,))


def through(codec: Scheme, x: Tensor) -> Tensor:
    """As the peer has it: from bytes alone, after the check."""
    packed = codec.encode(x, coding_for(codec, x))
    codec.check(packed.layout)
    received = Packed(layout=packed.layout, data=memoryview(bytearray(packed.data)))
    return codec.decode(received, coding_for(codec, x))


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
    assert eval(repr(codec), {type(codec).__name__: type(codec)}) == codec
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
    with pytest.raises(WireError, match=codec.kind):
        codec.check(tampered(layout)[what])


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


@pytest.mark.parametrize("direction", get_args(Direction))
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_another_codec_than_agreed_is_refused_with_both_names(direction: Direction, codec: Scheme) -> None:
    link = Link(**{direction: codec})
    x = torch.ones(3)
    layout = codec.encode(x, coding_for(codec, x)).layout
    assert link.agreed(direction, layout) == codec
    with pytest.raises(WireError, match=f"peer used codec 'topk9' for {direction}, this run says '{codec.kind}'"):
        link.agreed(direction, replace(layout, codec="topk9"))


@pytest.mark.parametrize("direction", get_args(Direction))
@pytest.mark.parametrize("codec", CODECS, ids=repr)
def test_integers_travel_as_they_are_whatever_the_codec(direction: Direction, codec: Scheme) -> None:
    link = Link(**{direction: codec})
    layout = Identity().encode(torch.arange(5), Coding()).layout
    assert link.agreed(direction, layout) == Identity()
    with pytest.raises(WireError, match="peer used codec 'topk9'"):
        link.agreed(direction, replace(layout, codec="topk9"))


@pytest.mark.parametrize("direction", get_args(Direction))
def test_what_was_agreed_is_checked_too(direction: Direction) -> None:
    layout = Identity().encode(torch.arange(5.0), Coding()).layout
    with pytest.raises(WireError, match=r"\(5,\) takes 20 bytes, header says 21"):
        Link().agreed(direction, replace(layout, nbytes=21))


def test_a_link_survives_json() -> None:
    link = Link(**dict.fromkeys(get_args(Direction), CODECS[-1]))
    assert Link.model_validate_json(link.model_dump_json()) == link
