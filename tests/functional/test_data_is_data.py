"""Data never becomes a reference: sagas whose input, literals, results, errors and signals are full of `$ref`,
`$literal` and pointers, through a real store, and read anew for each turn."""

import random
from typing import Any, Final

import pytest

from sagastream import Context, Reject, Service
from sagastream.broker import exchange
from sagastream.client import requests
from sagastream.core.saga import SagaState
from sagastream.core.strict_json import decode, encode
from sagastream.errors import MalformedMessage
from support.scenes import Scene
from support.servers import Server
from support.stores import KEYS
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

#: What a template gives a meaning to, and what stands in the sagas below: if any of it were followed, it would show.
NAMES: Final = (
    "$ref",
    "$literal",
    "$concat",
    "$unknown",
    "$",
    "default",
    "eq",
    "exists",
    "not",
    "$sealed",
    "/input",
    "a~1b",
)
TEXTS: Final = (
    "/input/secret",
    "/steps/1/result",
    "/steps/first/result/0",
    "/saga/id",
    "/failure/reason",
    "",
    "/",
    "$ref",
)


def evil(chance: random.Random, depth: int = 3) -> Any:
    """Data that would do harm if anybody took it for a template."""
    kind = chance.random()
    if depth == 0 or kind < 0.2:
        return chance.choice((*TEXTS, 7, True, None, 1.5))
    if kind < 0.4:
        return [evil(chance, depth - 1) for _ in range(chance.randint(0, 3))]
    if kind < 0.6:
        return {"$ref": chance.choice(TEXTS)}
    return {name: evil(chance, depth - 1) for name in chance.sample(NAMES, chance.randint(0, 3))}


class Echo(Scene):
    """A scene whose service writes down what it is told, and returns it."""

    def __init__(self, server: Server) -> None:
        super().__init__(server.broker())
        self.told: dict[str, list[Any]] = {"do": [], "undo": [], "input": []}
        self.effects.service = service = Service("work")
        service.command("Do", compensation="Undo")(self._do)
        service.compensation("Undo")(self._undo)
        self.runner = self.another_runner()

    def _do(self, params: Any, context: Context) -> Any:
        self.told["do"].append(params)
        self.told["input"].append(context.input)
        if isinstance(params, dict) and "refuse" in params:
            raise Reject(params["refuse"])
        return params

    def _undo(self, params: Any, context: Context) -> None:
        self.told["undo"].append((params, context.result, context.undo))

    def run(self, body: Any, payload: Any = None) -> SagaState:
        """Run a saga to its end; by another worker each time, which knows it from the store alone."""
        self.client.begin_request(requests.to_begin(body))
        sent = False

        def ended() -> SagaState | None:
            nonlocal sent
            self.another_worker().turn(block_ms=1)
            self.runner.turn(block_ms=1)
            state = self.client.get(body["saga_id"])
            if state is not None and not sent and payload is not None:
                request = requests.to_signal(state.saga_id, "go", payload, decline=None, actor=None)
                exchange.run(self.redis, requests.append(KEYS, [request]))
                sent = True
            return state if state is not None and (state.ended or state.parked) else None

        return until(ended, what="it ends")


def do(params: Any, **more: Any) -> Any:
    return {"transaction": "Do", "service": "work", "params": params} | more


def same(one: Any, other: Any) -> bool:
    """The very same JSON."""
    return encode(one) == encode(other)


@pytest.mark.parametrize("seed", range(12))
def test_what_looks_like_a_reference_is_handed_on_as_it_is(server: Server, seed: int) -> None:
    chance = random.Random(seed)
    given, literal, payload, default, refusal = (evil(chance) for _ in range(5))
    scene = Echo(server)
    whole = {"first": {"$ref": "/steps/first/result"}, "signal": {"$ref": "/steps/go/result"}}
    whole["default"] = {"$ref": "/input/absent", "default": default}
    undo = {
        "error": {"$ref": "/failure/error"},
        "mine": {"$ref": "/steps/second/result"},
        "as it is": {"$literal": literal},
    }
    steps = [
        do({"given": {"$ref": "/input/given"}, "literal": {"$literal": literal}}, id="first"),
        {"id": "go", "wait": "go", "timeout_ms": 600_000},
        do(whole, id="second", compensation_params=undo),
        do(
            {"$ref": "/steps/second/result"},
            when={"eq": [{"$ref": "/steps/first/result/literal"}, {"$literal": literal}]},
        ),
        do({"$ref": "/steps/4/result", "default": None}, id="fifth", when={"exists": {"$ref": "/input/given"}}),
        do({"refuse": {"$ref": "/input/refusal"}}),
    ]
    body = {"saga_id": "s1", "input": {"given": given, "secret": "told", "refusal": refusal}, "steps": steps}
    state = scene.run(body, payload)
    assert state.status == "ABORTED"
    first = {"given": given, "literal": literal}
    second = {"first": first, "signal": payload, "default": default}
    done = [first, second, second, second, {"refuse": refusal}]
    assert same(scene.told["do"], done)
    assert all(same(one, body["input"]) for one in scene.told["input"])
    assert same([params for params, *_ in scene.told["undo"]], done[3::-1])
    assert same([result for _, result, _ in scene.told["undo"]], done[3::-1])
    told = {"error": refusal, "mine": second, "as it is": literal}
    assert same([one for *_, one in scene.told["undo"]], [None, None, told, None])
    assert "told" not in encode(scene.told["do"]).decode()


def test_without_an_input_nothing_in_params_is_a_reference(server: Server) -> None:
    chance = random.Random(7)
    scene = Echo(server)
    params = [evil(chance) for _ in range(10)] + [{"$ref": "/steps/1/result"}, {"$unknown": 1}]
    for number, data in enumerate((params, [*params[1:], params[0]])):
        steps = [do(one, **({"id": "x", "after": []} if number else {})) for one in data[:1]] + [
            do(one) for one in data[1:]
        ]
        state = scene.run({"saga_id": f"s{number}", "steps": steps})
        assert (state.status, state.format) == ("COMPLETED", 2 if number else 1)
        assert same(scene.told["do"][-len(data) :], data)
        assert decode(state.steps[-1].result or b"null") == data[-1]


@pytest.mark.parametrize("params", [{"$unknown": 1}, {"a": [{"$ref": 7}]}, {"$ref": "/input/x", "more": 1}])
def test_in_a_template_what_looks_like_a_reference_and_is_none_is_refused(params: Any) -> None:
    """… and says that data needs `$literal` around it, rather than guess."""
    body: Any = {"saga_id": "s1", "input": {}, "steps": [do(params)]}
    with pytest.raises(MalformedMessage, match="step 1: params/"):
        requests.to_begin(body)
    body["steps"] = [do({"$literal": params})]
    requests.to_begin(body)
