"""An entry with the greatest id that there is: after it, a stream takes no more entries. Nothing is half written,
nothing ends, and `doctor --repair` has everything go on."""

from typing import Any

import pytest
import redis

from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaStatus
from sagastream.orchestrator import worker
from sagastream.store.keys import moving
from sagastream.store.quarantine import Quarantine
from sagastream_bridge.inspection.doctor import Doctor
from sagastream_bridge.inspection.findings import PROBLEM, REPAIRED
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

GREATEST = f"{2**64 - 1}-{2**64 - 1}"
STREAMS = {
    "requests": ONLY.requests,
    "interventions": ONLY.interventions,
    "replies": ONLY.replies("work"),
    "commands": ONLY.commands("work"),
    "events": ONLY.events,
    "quarantine": ONLY.quarantine,
    "quarantine of the service": ONLY.quarantine_of("work"),
}


@pytest.fixture
def scene(server: Server, monkeypatch: pytest.MonkeyPatch) -> Scene:
    monkeypatch.setattr(worker, "LEASE_MS", 1)
    return Scene(server.broker())


def end_of(scene: Scene, stream: str) -> None:
    """Add an entry with the greatest id."""
    scene.redis.xadd(stream, {"body": "x"}, id=GREATEST)


def repair(scene: Scene, level: str = REPAIRED) -> list[str]:
    found = Doctor(scene.broker, repair=level == REPAIRED).examine()
    return [f"{one.about}: {one.text}" for one in found if one.level == level and "greatest" not in one.text]


def dump(scene: Scene) -> dict[str, Any]:
    """All that a commit writes."""
    found: Any = scene.redis.keys("saga:{0}:saga:*")
    keys = [key.decode() for key in found]
    hashes = {key: scene.redis.hgetall(key) for key in keys}
    streams = {name: scene.redis.xrange(name) for name in STREAMS.values()}
    return {"hashes": hashes, "timers": scene.redis.zrange(ONLY.timers, 0, -1), "streams": streams}


def test_a_commit_that_cannot_append_writes_nothing(scene: Scene) -> None:
    """Five sagas were left without a timer."""
    scene.worker.turn(block_ms=1)
    end_of(scene, ONLY.commands("work"))
    for number in range(5):
        scene.begin(f"s{number}", do(number))
    before = dump(scene)
    for _ in range(3):
        scene.worker.turn(block_ms=1)
    after = dump(scene)
    assert after == before
    assert not after["hashes"]


@pytest.mark.parametrize("stream", ["events", "commands"])
def test_what_was_appended_before_is_taken_back(scene: Scene, stream: str) -> None:
    """The next command is appended before the event that tells of it, or the other way round."""
    scene.worker.turn(block_ms=1)
    scene.begin("s1", do(1), echo=True)
    end_of(scene, STREAMS[stream])
    before = dump(scene)
    for _ in range(3):
        scene.worker.turn(block_ms=1)
    assert dump(scene) == before
    repair(scene)
    assert scene.play("s1").status is SagaStatus.COMPLETED


@pytest.mark.parametrize("name", STREAMS)
def test_everything_goes_on_when_the_doctor_has_mended_the_stream(
    server: Server, commands: Commands, name: str
) -> None:
    """Real processes, which nobody starts anew."""
    scene = Scene(server.broker())
    (commands.folder / "shop.py").write_text(
        "from sagastream import Service\nservice = Service('work')\n"
        "service.command('Do', compensation=None)(lambda params, context: params)\n"
    )
    env = {"REDIS_URL": server.url}
    processes = [commands.quiet("worker", env=env), commands.quiet("service", "shop:service", env=env)]
    scene.begin("first", do(1))
    until(lambda: (state := scene.client.get("first")) and state.ended, what="all are at work")
    stream = STREAMS[name]
    scene.redis.xadd(stream, {"body": "x", "reason": "x"}, id=GREATEST)
    with SagaClient(server.broker()) as client:
        if name == "requests":
            with pytest.raises(redis.RedisError, match="exhausted"):
                client.begin("s1", [do({"n": 1}), do({"n": 2})])
        else:
            client.begin("s1", [do({"n": 1}), do({"n": 2})])
        scene.redis.xadd(ONLY.commands("other"), {"body": "x"})  # more than one stream is looked at
        said = commands.run("doctor", REDIS_URL=server.url).stdout
        assert f"problem  {stream}: somebody has added an entry with the id {GREATEST}" in said or stream in said
        assert "doctor --repair moves them" in said
        assert repair(scene)
        if name == "requests":
            client.begin("s1", [do({"n": 1}), do({"n": 2})])
        assert client.wait("s1", timeout_s=60).status is SagaStatus.COMPLETED
    assert not scene.redis.exists(moving(stream))
    assert all(process.poll() is None for process in processes)
    assert not repair(scene, PROBLEM)


def test_entries_of_the_old_stream_are_read_again_and_known_as_such(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    stream = ONLY.commands("work")
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.redis.xlen(stream) == 1)
    scene.redis.xgroup_create(stream, "work", 0)
    assert scene.redis.xreadgroup("work", "gone", {stream: ">"}, count=1)
    end_of(scene, stream)
    assert repair(scene, PROBLEM)[0].startswith(f"{stream}: ")
    assert repair(scene)
    entries: Any = scene.redis.xrange(stream)
    assert [fields.get(b"replayed") for _, fields in entries] == [b"1", None]
    assert scene.play("s1").status is SagaStatus.COMPLETED
    assert [one.body for one in Quarantine(scene.redis, KEYS).newest_first()] == [b"x"]


def test_a_repair_that_was_interrupted_goes_on(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    scene.begin("s1", do(1))
    scene.redis.rename(ONLY.requests, moving(ONLY.requests))
    assert any("a repair was interrupted" in text for text in repair(scene, PROBLEM))
    assert any("a repair was interrupted" in text for text in repair(scene))
    assert scene.play("s1").status is SagaStatus.COMPLETED
    assert not repair(scene)


def test_an_entry_with_very_many_fields_is_moved_too(scene: Scene) -> None:
    scene.worker.turn(block_ms=1)
    scene.redis.xadd(ONLY.requests, {f"f{number}": number for number in range(10_000)})
    end_of(scene, ONLY.requests)
    assert repair(scene)
    scene.turns_until(lambda: len(Quarantine(scene.redis, KEYS)) == 2)


def test_an_id_of_a_time_that_no_clock_gives_confuses_nobody(
    scene: Scene, server: Server, commands: Commands, caplog: pytest.LogCaptureFixture
) -> None:
    far = f"{2**63}-5"
    for stream in (ONLY.requests, ONLY.quarantine, ONLY.commands("work"), ONLY.events):
        scene.redis.xadd(stream, {"body": "x", "reason": "y"}, id=far)
    scene.begin("s1", do(1))
    assert scene.play("s1").status is SagaStatus.COMPLETED
    assert "set back" not in caplog.text
    listed = commands.run("quarantine", "list", REDIS_URL=server.url)
    assert listed.returncode == 0
    assert "9999-12-31" in listed.stdout
    assert repair(scene)
    assert not repair(scene, PROBLEM)


@pytest.mark.parametrize("key", [ONLY.requests, ONLY.timers, ONLY.commands("work"), KEYS.services])
def test_a_key_that_is_to_expire_is_kept(scene: Scene, key: str) -> None:
    scene.worker.turn(block_ms=1)
    scene.begin("s1", do(1))
    scene.turns_until(lambda: scene.redis.xlen(ONLY.commands("work")) == 1)
    scene.redis.expire(key, 3600)
    if not scene.redis.exists(key):
        return
    assert any(f"{key} expires in " in text for text in repair(scene, PROBLEM))
    assert any(f"{key} expires in " in text for text in repair(scene))
    assert scene.redis.ttl(key) == -1
