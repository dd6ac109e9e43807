"""Who may speak for whom: the rules, the sessions, and what is counted and said of a no. No network here."""

from __future__ import annotations

import pytest
from drawn import LAW
from hypothesis import given
from hypothesis import strategies as st
from world import make_config

from sl_common.errors import Refused
from sl_common.network.network import Network
from sl_common.wire import Hello
from sl_server.core.coordinator import Coordinator
from sl_server.core.identity import UNPROVEN, StreamIdentity, admit
from sl_server.core.sessions import Sessions
from sl_server.telemetry.ledger import Ledger
from sl_server.telemetry.metrics import Metrics
from sl_server.telemetry.names import REASONS
from sl_server.transport.refusals import MAX_SAID, Refusals

C0 = StreamIdentity(certificate=("c0",))
C1 = StreamIdentity(certificate=("c1",))
T0 = StreamIdentity(bearer=("c0",))
T1 = StreamIdentity(bearer=("c1",))

# --- the rules

ADMITTED = [
    ("", StreamIdentity(), ""),
    ("north", StreamIdentity(), "north"),
    ("", C0, "c0"),
    ("c0", C0, "c0"),
    ("c0", StreamIdentity(certificate=("device 7", "c0", "urn:c0")), "c0"),
    ("urn:c0", StreamIdentity(certificate=("device 7", "c0", "urn:c0")), "urn:c0"),
    ("", StreamIdentity(certificate=("device 7", "c0")), "device 7"),
    ("c0", T0, "c0"),
    ("", T0, "c0"),
    ("c0", StreamIdentity(certificate=("c0",), bearer=("c0",)), "c0"),
    ("", StreamIdentity(certificate=("c0",), bearer=("c0",)), "c0"),
    ("", StreamIdentity(certificate=("device 7", "c0"), bearer=("c0",)), "c0"),
]
REFUSED = [
    ("c1", C0, "calls itself 'c1', its certificate is that of 'c0'"),
    ("c1", StreamIdentity(certificate=("a", "b")), "calls itself 'c1', its certificate is that of 'a' or 'b'"),
    ("c0", StreamIdentity(certificate=("C0",)), "that of 'C0'"),
    ("c0", StreamIdentity(certificate=("*",)), "that of '*'"),
    ("c0", StreamIdentity(certificate=()), "has no name"),
    ("", StreamIdentity(certificate=()), "has no name"),
    ("", StreamIdentity(certificate=("a/b",)), "made for 'a/b', which is no client's name"),
    ("", StreamIdentity(certificate=("x" * 65,)), "which is no client's name"),
    ("", StreamIdentity(certificate=("\x1b[2J",)), r"made for '\\x1b\[2J'"),
    ("c0", StreamIdentity(bearer=()), UNPROVEN),
    ("", StreamIdentity(bearer=()), UNPROVEN),
    ("c1", T0, UNPROVEN),
    ("nobody", T0, UNPROVEN),
    ("c0", StreamIdentity(certificate=("c0",), bearer=()), UNPROVEN),
    ("c0", StreamIdentity(certificate=("c0",), bearer=("c1",)), UNPROVEN),
    ("", StreamIdentity(certificate=("c0",), bearer=("c1",)), UNPROVEN),
    ("c1", StreamIdentity(certificate=("c0",), bearer=("c1",)), "its certificate is that of 'c0'"),
]


@pytest.mark.parametrize(("client", "identity", "name"), ADMITTED)
def test_who_proves_it_is_admitted(client: str, identity: StreamIdentity, name: str) -> None:
    assert admit(client, identity) == name


@pytest.mark.parametrize(("client", "identity", "why"), REFUSED)
def test_who_does_not_prove_it_is_refused(client: str, identity: StreamIdentity, why: str) -> None:
    with pytest.raises(Refused, match=why) as caught:
        admit(client, identity)
    assert caught.value.code == "identity"


def test_nothing_tells_an_unknown_name_from_a_wrong_or_missing_token() -> None:
    said = set()
    for client, identity in [
        ("nobody", T0),
        ("c1", T0),
        ("c0", StreamIdentity(bearer=())),
        ("nobody", StreamIdentity(bearer=())),
    ]:
        with pytest.raises(Refused) as caught:
            admit(client, identity)
        said.add((caught.value.code, caught.value.reason))
    assert len(said) == 1


names = st.sampled_from(["", "c0", "c1", "urn:c0"])
proofs = st.none() | st.lists(names.filter(bool), max_size=3, unique=True).map(tuple)


@LAW
@given(names, proofs, proofs)
def test_nobody_gets_a_name_that_was_not_proven(
    client: str, certificate: tuple[str, ...] | None, bearer: tuple[str, ...] | None
) -> None:
    try:
        name = admit(client, StreamIdentity(certificate=certificate, bearer=bearer))
    except Refused:
        return
    assert client in ("", name)
    for proof in (certificate, bearer):
        assert proof is None or name in proof


# --- sessions


@pytest.fixture
def sessions() -> Sessions:
    config = make_config("parallel")
    return Sessions(Coordinator(config, Network.build(config)), incarnation=1)


LIFE = b"a life that leaks"[:16]


@pytest.mark.parametrize(
    ("owner", "thief"), [(C0, C1), (T0, T1), (T0, StreamIdentity(bearer=())), (C0, StreamIdentity(certificate=()))]
)
@pytest.mark.parametrize("calling_itself", ["", "c0", "c1"])
@pytest.mark.parametrize("resume", [True, False])
def test_a_stolen_life_opens_nothing_for_another(
    sessions: Sessions, owner: StreamIdentity, thief: StreamIdentity, calling_itself: str, resume: bool
) -> None:
    session = sessions.open(Hello(life=LIFE, client="c0"), owner).session
    stolen = Hello(life=LIFE, client=calling_itself, received=0, resume=resume)
    with pytest.raises(Refused) as caught:
        sessions.open(stolen, thief)
    assert caught.value.code == "identity"
    assert sessions.by_client == {"c0": session}
    assert not session.closed
    assert sessions.open(Hello(life=LIFE, client="c0", resume=True), owner).greeting.resumed


@pytest.mark.parametrize(("owner", "other"), [(C0, C1), (T0, T1)])
def test_a_name_is_not_replaced_by_another_identity(
    sessions: Sessions, owner: StreamIdentity, other: StreamIdentity
) -> None:
    session = sessions.open(Hello(life=bytes(16), client="c0"), owner).session
    with pytest.raises(Refused):
        sessions.open(Hello(life=bytes(15) + b"\x01", client="c0"), other)
    assert not session.replaced
    opened = sessions.open(Hello(life=bytes(15) + b"\x01", client="c0"), owner)
    assert opened.replaces is session


def test_who_names_itself_nothing_gets_the_name_it_proves(sessions: Sessions) -> None:
    assert sessions.open(Hello(life=bytes(16)), C1).greeting.client == "c1"
    assert sessions.open(Hello(life=bytes(15) + b"\x01"), T0).greeting.client == "c0"


# --- what is counted and said


def test_every_refusal_is_counted_and_said_once_for_each_reason_and_peer() -> None:
    metrics, said = Metrics(Ledger()), list[str]()
    now = [0.0]
    refusals = Refusals(metrics, said.append, lambda: now[0])
    for _ in range(50):
        for who in ("'c0' at 192.0.2.1", "'c0' at 192.0.2.2"):
            for code in REASONS:
                refusals.note(who, Refused(code, f"because of {code}"))
    counted = [metrics.registry.get_sample_value("sl_rejected_total", {"reason": code}) for code in REASONS]
    assert counted == [100] * len(REASONS)
    assert len(said) == 2 * len(REASONS)
    assert said[0] == "refused 'c0' at 192.0.2.1 (version): because of version"
    now[0] = 61.0
    refusals.note("'c0' at 192.0.2.1", Refused("version", "two\nlines"))
    assert said[2 * len(REASONS) :] == ["refused 'c0' at 192.0.2.1 (version): two lines"], "and again after a minute"


def test_thinking_up_names_fills_no_log() -> None:
    metrics, said = Metrics(Ledger()), list[str]()
    refusals = Refusals(metrics, said.append)
    for number in range(3 * MAX_SAID):
        refusals.note(f"'{number}' at 192.0.2.1", Refused("identity", "no"))
    assert metrics.registry.get_sample_value("sl_rejected_total", {"reason": "identity"}) == 3 * MAX_SAID
    assert len(said) == MAX_SAID + 1
    assert len(refusals._said) == MAX_SAID + 1
    assert "only counted" in said[-1]
