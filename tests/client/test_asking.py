"""What an asker decides, against the traces that the page's own decisions replay, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.client import asking
from swarm.client.asking import Ask, Asking, Broke, Command, Drop, Event, Nodes, Phase, Reply, Tick
from swarm.config import AskerConfig
from swarm.errors import GenerationFailed, InvalidInput, PeerUnreachable, StreamClosed
from swarm.wire import swarm_pb2 as pb

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "asker" / "traces.json").read_text())
"""Times in ms, as in the page."""


def config_of(patience: dict[str, Any]) -> AskerConfig:
    seconds = {name: patience[name] / 1000 for name in ("silence", "waiting", "avoid")}
    return AskerConfig(open_timeout=patience["opening"] / 1000, failures=patience["failures"], **seconds)


def node_of(told: dict[str, Any]) -> pb.QueryNode:
    contract = pb.Contract(model="m", last=4, dtype=told["dtype"], quantization=told["quantization"])
    peer, codec = told["peer"], told["codec"]
    return pb.QueryNode(
        peer_id=peer, running=told["running"], capacity=told["capacity"], codec=codec, contract=contract
    )


def test_a_node_that_would_pass_over_what_an_answer_must_look_like_is_not_asked() -> None:
    old, new = pb.QueryNode(), pb.QueryNode(constrains=True)
    formed = pb.Query(sampling=pb.Sampling(constraint=pb.Constraint(json_schema="")))
    for query in (formed, pb.Query(tool_choice=pb.ToolChoice())):
        assert (asking.can_answer(old, query), asking.can_answer(new, query)) == (False, True)
    assert asking.can_answer(old, pb.Query(sampling=pb.Sampling(seed=1)))


def test_pictures_are_for_nodes_that_see_and_where_none_does_one_says_so() -> None:
    old, sees = pb.QueryNode(constrains=True), pb.QueryNode(sees=True)
    shown = pb.Query(messages='[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]')
    assert asking.answering([old, sees], shown) == [sees]
    assert asking.answering([old], shown) == [old]
    assert asking.answering([old, sees], pb.Query(messages="[]")) == [old, sees]
    shown.tool_choice.single = True
    assert asking.answering([old, sees], shown) == [old]


def reply_of(told: dict[str, Any]) -> pb.QueryReply:
    ((kind, value),) = told.items()
    match kind:
        case "delta":
            sent = value["sentBytes"]
            return pb.QueryReply(delta=pb.Delta(tokens=value["tokens"], text=value["text"], sent_bytes=sent))
        case "failure":
            code = pb.Failure.Code.Value(value["code"])
            return pb.QueryReply(failure=pb.Failure(code=code, message="no", retry_after=value["retryAfter"]))
        case "waiting":
            return pb.QueryReply(waiting=pb.Waiting(**value))
    made = {"accepted": pb.Accepted, "route": pb.RouteInUse, "finished": pb.Finished}
    return pb.QueryReply(**{kind: made[kind]()})


def event_of(told: dict[str, Any]) -> Event:
    match told["type"]:
        case "nodes":
            return Nodes([node_of(each) for each in told["nodes"]])
        case "reply":
            return Reply(told["attempt"], reply_of(told["reply"]))
        case "broke":
            return Broke(told["attempt"], StreamClosed("gone"))
    return Tick()


def seen(state: Asking, commands: list[Command]) -> dict[str, Any]:
    """What a trace says of a state and of what it wants done."""
    return {
        "phase": state.phase.value,
        "node": "" if state.node is None else state.node.peer_id,
        "attempt": state.attempt,
        "generated": list(state.generated),
        "sentBytes": state.sent_bytes,
        "failures": state.failures,
        "waitingPatience": round(1000 * state.waiting_patience),
        "avoided": {peer: round(1000 * until) for peer, until in sorted(state.avoided.items())},
        "commands": [f"ask {each.node.peer_id}" if isinstance(each, Ask) else "drop" for each in commands],
    }


def replay(patience: dict[str, Any], trace: dict[str, Any], *, write: bool = False) -> None:
    config, avoided = config_of(patience), {peer: until / 1000 for peer, until in trace["avoided"].items()}
    state, commands = asking.begin([node_of(each) for each in trace["nodes"]], avoided, trace["at"] / 1000, config)
    for told in (trace, *trace["steps"]):
        if told is not trace:
            state, commands = asking.step(state, event_of(told["event"]), told["at"] / 1000, config)
        if write:
            told["then"] = seen(state, commands)
        assert seen(state, commands) == told["then"], told


@pytest.mark.parametrize("trace", GOLDEN["traces"], ids=lambda trace: trace["name"])
def test_a_trace_is_replayed(trace: dict[str, Any]) -> None:
    replay(GOLDEN["patience"], trace)


def test_the_defaults_are_those_of_the_traces() -> None:
    config, theirs = AskerConfig(), config_of(GOLDEN["patience"])
    assert (config.waiting, config.avoid, config.failures) == (theirs.waiting, theirs.avoid, theirs.failures)
    assert config.silence == theirs.silence


CONTRACT = pb.Contract(model="m", last=4, dtype="float32")
ONE = pb.QueryNode(peer_id="one", capacity=4, contract=CONTRACT)
NODE = st.builds(pb.QueryNode, peer_id=st.sampled_from("abc"), capacity=st.integers(0, 2), contract=st.just(CONTRACT))


def test_why_it_is_over_is_an_error() -> None:
    config = AskerConfig(failures=1, max_wait=10.0)
    state, _ = asking.begin([ONE], {}, 0.0, config)
    failed, commands = asking.step(state, Broke(1, StreamClosed("gone")), 1.0, config)
    assert (type(failed.error), commands) == (GenerationFailed, [Drop()])
    refusal = pb.QueryReply(failure=pb.Failure(code=pb.Failure.INVALID, message="no"))
    assert type(asking.step(state, Reply(1, refusal), 1.0, config)[0].error) is InvalidInput
    alone, _ = asking.begin([], {}, 0.0, config)
    for now, phase in ((9.0, Phase.CHOOSING), (10.0, Phase.FAILED)):
        alone, _ = asking.step(alone, Nodes([]), now, config)
        assert alone.phase is phase
    assert type(alone.error) is PeerUnreachable


EVENTS = st.one_of(
    st.builds(Nodes, st.lists(NODE, max_size=4)),
    st.builds(Broke, st.integers(0, 4), st.just(StreamClosed("gone"))),
    st.just(Tick()),
    st.builds(
        Reply,
        st.integers(0, 4),
        st.sampled_from(
            [
                pb.QueryReply(),
                pb.QueryReply(accepted=pb.Accepted()),
                pb.QueryReply(waiting=pb.Waiting(first=1, last=2)),
                pb.QueryReply(delta=pb.Delta(tokens=[1], text="a", sent_bytes=1)),
                pb.QueryReply(delta=pb.Delta()),
                pb.QueryReply(failure=pb.Failure(code=pb.Failure.BUSY)),
                pb.QueryReply(failure=pb.Failure()),
                pb.QueryReply(finished=pb.Finished()),
            ]
        ),
    ),
)


@given(st.lists(st.tuples(st.floats(0.0, 30.0), EVENTS), max_size=25))
def test_whatever_comes_one_node_is_asked_at_a_time(events: list[tuple[float, Event]]) -> None:
    config, now = AskerConfig(max_wait=100.0), 0.0
    state, commands = asking.begin([ONE], {}, now, config)
    asked: set[int] = set()
    for later, event in [(0.0, None), *events]:
        now += later
        before = state
        if event is not None:
            state, commands = asking.step(state, event, now, config)
        for command in commands:
            asked = {command.attempt} if isinstance(command, Ask) else set()
        asking_one = state.phase in (Phase.ASKING, Phase.ANSWERING, Phase.WAITING)
        assert asked == ({state.attempt} if asking_one else set())
        assert list(state.generated[: len(before.generated)]) == list(before.generated)
        assert state.sent_bytes >= before.sent_bytes
        assert before.over <= (state == before)
