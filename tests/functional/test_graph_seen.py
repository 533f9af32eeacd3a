"""Sagas that are graphs, as clients and the doctor see them on real servers."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from sagastream.broker.exchange import run
from sagastream.client.waiting import completed
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.causes import CauseKind
from sagastream.core.saga import SagaState
from sagastream.errors import SagaAborted, SagaParked
from sagastream.store import published
from sagastream.store.unread import unread
from sagastream_bridge.inspection.doctor import Doctor
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS
from support.streams import append_requests
from support.waiting import until

pytestmark = pytest.mark.both_in_soak


PIVOT = do("paid", "DoForGood", kind="pivot", compensation=None)


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def begin(scene: Scene, saga_id: str, *steps: dict[str, Any], **members: Any) -> None:
    body = {"saga_id": saga_id, "format": 2, "input": {}, "steps": list(steps)} | members
    append_requests(scene.redis, [parse_begin(body, request_id=f"begin-{saga_id}")])


def played(scene: Scene, saga_id: str, condition: Callable[[SagaState], bool], *, served: bool = True) -> SagaState:
    def reached() -> SagaState | None:
        scene.worker.turn(block_ms=1)
        if served:
            scene.runner.turn(block_ms=1)
        state = scene.client.get(saga_id)
        return state if state is not None and condition(state) else None

    return until(reached, what=f"{saga_id} gets there")


def two_branches(scene: Scene) -> SagaState:
    """A saga that is parked in one branch behind its pivot, while a command of the other is out."""
    branches = [
        do("fail", id="told", kind="retriable", attempts=1, after=[1]),
        do("x", id="away", service="away", kind="retriable", after=[1]),
    ]
    begin(scene, "g1", PIVOT, *branches)
    return played(scene, "g1", lambda state: state.parked is not None)


def test_the_commands_of_all_steps_that_are_out_are_found(scene: Scene) -> None:
    begin(scene, "g1", do(1, id="a", after=[]), do(2, id="b", service="away", after=[]))
    played(scene, "g1", lambda state: len(state.active_steps) == 2, served=False)
    causes = scene.client.why("g1")
    assert [(cause.kind, cause.facts["steps"]) for cause in causes if "steps" in cause.facts] == [
        (CauseKind.NO_SERVICE, [1]),
        (CauseKind.NO_SERVICE, [2]),
    ]
    for service in ("work", "away"):
        assert run(scene.redis, unread(KEYS, service)).awaited == ["g1"]


def test_a_wait_is_no_service(scene: Scene) -> None:
    begin(scene, "g1", {"wait": "approve", "timeout_ms": 60_000, "after": []}, do(1, after=[]))
    played(scene, "g1", lambda state: state.completed_steps == (2,))
    assert "" not in run(scene.redis, published.services(KEYS))
    assert [cause.kind for cause in scene.client.why("g1")][-1] is CauseKind.AWAITS_SIGNAL
    found = list(Doctor(scene.broker).examine())
    assert not [one for one in found if one.about == "service "]
    assert not [one for one in found if one.level == "problem" and one.about in ("sagas", "keys")]


def test_a_saga_that_is_parked_in_one_branch_is_listed_as_parked(scene: Scene) -> None:
    state = two_branches(scene)
    assert state.due_ms is not None
    append_requests(scene.redis, [parse_begin({"saga_id": "plain", "steps": [do(1, service="away")]})])
    played(scene, "plain", lambda _: True)
    listed = [one for one in scene.client.list("PARKED") if isinstance(one, SagaState)]
    assert [one.saga_id for one in listed] == ["g1"]
    with pytest.raises(SagaParked, match=r"step 2, Do of work") as parked:
        completed(state)
    assert (parked.value.step, parked.value.service) == (2, "work")


def test_the_doctor_tells_of_each_branch_under_its_service(scene: Scene) -> None:
    two_branches(scene)
    found = [one for one in Doctor(scene.broker).examine() if one.level in ("problem", "warning")]
    (away,) = [one for one in found if one.about == "service away"]
    assert "sagas that wait for Do: 1 (g1)" in away.text
    assert any("parked, waiting for a person: 1" in one.text for one in found)


def test_the_step_that_failed_is_named_and_not_one_that_only_stopped_waiting(scene: Scene) -> None:
    waits = {"wait": "approve", "timeout_ms": 60_000, "after": []}
    begin(scene, "g1", waits, do("fail", id="b", after=[], attempts=1))
    state = played(scene, "g1", lambda state: state.ended)
    with pytest.raises(SagaAborted) as aborted:
        completed(state)
    assert (aborted.value.step, aborted.value.transaction, aborted.value.service) == (2, "Do", "work")
    begin(scene, "g2", waits)
    played(scene, "g2", lambda state: state.active_steps == [1])
    scene.redis.xadd(
        KEYS.of("g2").interventions,
        {"body": '{"type":"saga_signal","format":2,"saga_id":"g2","name":"approve","decline":"no"}'},
    )
    with pytest.raises(SagaAborted, match=r"approve was declined: no \(step 1, approve\)$"):
        completed(played(scene, "g2", lambda state: state.ended))


def test_the_command_line_shows_and_lists_it(scene: Scene, server: Server, commands: Commands) -> None:
    two_branches(scene)
    shown = commands.run("show", "g1", REDIS_URL=server.url)
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    at = lines.index("  ├─╮")
    assert [line.split() for line in lines[at - 1 : at + 3]] == [
        ["◆", "1", "DoForGood", "done"],
        ["├─╮"],
        ["●", "│", "2", "told", "Do", "PARKED"],
        ["●", "3", "away", "Do", "out"],
    ]
    assert "  parked   Do of step 2 (told) failed: as asked" in lines
    assert any(line.startswith("  you can  sagastream abandon g1 --now --reason TEXT --parked-at 2/") for line in lines)
    found = json.loads(commands.run("show", "g1", "--json", REDIS_URL=server.url).stdout)
    assert [step["phase"] for step in found["steps"]] == ["COMPLETED", "PARKED", "OUT"]
    assert [(cause["kind"], cause["steps"]) for cause in found["why"] if "steps" in cause] == [
        ("no_service", [3]),
        ("parked", [2]),
    ]
    listed = commands.run("list", "--status", "parked", REDIS_URL=server.url)
    assert listed.stdout.startswith("PARKED")
    retried = commands.run("retry", "g1", "--step", "told", "--reason", "so", "--timeout", "0", REDIS_URL=server.url)
    assert "within 0 s" in retried.stderr  # no worker runs in this test


def test_a_verb_about_one_step_tells_how_that_step_is(scene: Scene, server: Server, commands: Commands) -> None:
    failing = [do("fail", id=name, kind="retriable", attempts=1, after=[1]) for name in ("a", "b")]
    begin(scene, "g1", PIVOT, *failing)
    played(scene, "g1", lambda state: len(state.parked_steps) == 2)
    running = commands.start("skip", "g1", "--step", "b", "--reason", "told by phone", env={"REDIS_URL": server.url})
    played(scene, "g1", lambda state: len(state.parked_steps) == 1)
    out, _ = running.communicate(timeout=60)
    assert (running.returncode, out) == (0, b"g1 PENDING: waits for a person, step 2 (a) is parked\n")
    lines = commands.run("show", "g1", REDIS_URL=server.url).stdout.splitlines()
    assert any(line.startswith("  skip ") and "  step 3 (b) by " in line for line in lines)
