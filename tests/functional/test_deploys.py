"""Two releases of one service side by side, as in every deploy: the newer one has commands that the older one does not
have. Real processes, which are killed."""

import json
import random
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from sagastream import Context, Reject, Service
from sagastream.client.blocking import SagaClient
from sagastream.service.runner import ServiceRunner
from sagastream.store import published
from support import oracle
from support.faults import Scale, World, world_of
from support.newer_records import newer_records
from support.processes import Commands
from support.releases import Release
from support.scenes import Scene
from support.servers import Server
from support.stores import KEYS, ONLY
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

#: How often a process is killed, at least.
KILLS: Final = 12

OLDER: Final = "support.oracle"
NEWER: Final = "support.oracle_newer"
#: The command line of a release that writes other records.
NEWER_RECORDS: Final = (sys.executable, "-m", "support.newer_records")


@pytest.fixture
def world(tmp_path: Path, commands: Commands) -> Iterator[World]:
    with world_of(Scale(sagas=40, factor=1), tmp_path, commands) as made:
        yield made


@pytest.mark.slow
def test_no_saga_is_aborted_because_one_release_of_a_service_lacks_a_command(world: World) -> None:
    chance = random.Random(20260201)
    world.start(workers=1, services=2, module=OLDER)
    world.start(workers=1, services=1, module=NEWER)
    world.options = {"transaction": "Pack"}
    until(lambda: all(world.redis.hexists(KEYS.published(name), "Pack") for name in oracle.NAMES), what="it is known")

    def kill_one() -> None:
        world.kill(chance.choice([*world.workers, *world.services]))

    world.run(kill_one, every_s=0.25, times=KILLS)
    world.verdict()
    assert min(world.figures["COMPLETED"], world.figures["ABORTED"]) > 0


# --- command by command


class Shop:
    """The service `work` as one release has it, which writes down what it does."""

    def __init__(self, *commands: str, undone_by: str | None = None) -> None:
        self.did: list[str] = []
        self.service = Service("work", lease_ms=300)
        for name in commands:
            self.service.command(name, compensation=undone_by or f"Un{name}")(self._do(name))
            if undone_by is None:
                self.service.compensation(f"Un{name}")(self._do(f"Un{name}"))
        if undone_by is not None:
            self.service.compensation(undone_by)(self._do(undone_by))

    def _do(self, name: str) -> Any:
        def do(params: Any, context: Context) -> Any:
            self.did.append(name)
            if params == "fail":
                raise Reject("as asked")
            return params

        return do


class Deploy(Scene):
    """A worker and a client, and runners of the service `work` in several releases."""

    def run(self, service: Service) -> ServiceRunner:
        runner = ServiceRunner(self.broker, service, self.stop)
        runner._inbox.read(1)  # it joins the group, and publishes
        return runner

    def deliver(self, name: str, *, compensating: bool = False, **fields: Any) -> bytes:
        """A command for step 1 of the saga s1."""
        body: dict[str, Any] = {"type": name, "saga_id": "s1", "step": 1}
        body |= {"compensating": True} if compensating else {"params": 1}
        entry: dict[Any, Any] = {"body": json.dumps(body), "begun_ms": 1} | fields
        entry_id: Any = self.redis.xadd(WORK, entry)
        return bytes(entry_id)

    def given_to_one_that_died(self, name: str, **fields: Any) -> bytes:
        """The same, delivered to a process that has died since."""
        entry_id = self.deliver(name, **fields)
        self.redis.xreadgroup("work", "dead", {WORK: ">"})
        self.redis.xclaim(WORK, "work", "dead", 0, [entry_id], idle=60_000)
        return entry_id

    def now_ms(self) -> int:
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def answers(self) -> list[tuple[str, str | None]]:
        entries: Any = self.redis.xrange(ONLY.replies("work"))
        bodies = [json.loads(fields[b"body"]) for _, fields in entries]
        return [(body["type"], body.get("error")) for body in bodies]

    def is_handed_back(self, entry_id: bytes) -> bool:
        """Whether any process may take the entry over at once."""
        found: Any = self.redis.xpending_range(WORK, "work", entry_id, entry_id, 1, idle=10**6)
        return bool(found)

    def turns_of(self, runner: ServiceRunner, condition: Callable[[], object]) -> None:
        def turned() -> bool:
            runner._inbox.reader.leases._next_look = 0.0
            runner.turn(block_ms=1)
            return bool(condition())

        until(turned, what="the service gets there")


WORK: Final = ONLY.commands("work")


@pytest.fixture
def deploy(server: Server) -> Deploy:
    return Deploy(server.broker())


@pytest.mark.parametrize("compensating", [False, True])
def test_what_only_the_other_release_has_is_left_to_it_and_said_once(
    deploy: Deploy, compensating: bool, caplog: pytest.LogCaptureFixture
) -> None:
    newer, older = Shop("Do", "Pack"), Shop("Do")
    runners = [deploy.run(newer.service), deploy.run(older.service)]
    name = "UnPack" if compensating else "Pack"
    first = deploy.deliver(name, compensating=compensating)
    for _ in range(3):
        deploy.turns_of(runners[1], lambda: deploy.is_handed_back(first))
        deploy.redis.xclaim(WORK, "work", "dead", 0, [first], idle=60_000)
    assert deploy.answers() == []
    said = [record.getMessage() for record in caplog.records if name in record.getMessage()]
    text = f"has no {name}, which another release of the service publishes: leaves all of it to that release"
    assert said == [text]
    deploy.turns_of(runners[0], deploy.answers)
    assert deploy.answers() == [(f"{name}_ok", None)]
    assert (newer.did, older.did) == ([name], [])


def test_what_nobody_publishes_fails_at_once(deploy: Deploy) -> None:
    runner = deploy.run(Shop("Do").service)
    deploy.deliver("Fly")
    deploy.deliver("Do", compensating=True)  # a name that it has, but not as this
    deploy.deliver("UnDo")
    deploy.turns_of(runner, lambda: len(deploy.answers()) == 3)
    assert deploy.answers() == [
        ("Fly_failed", "unknown_command: service work has no command Fly"),
        ("Do_failed", "unknown_command: service work has no compensation Do"),
        ("UnDo_failed", "cancelled: UnDo came after its compensation"),
    ]


def test_what_nobody_publishes_any_more_may_have_been_begun_all_the_same(deploy: Deploy) -> None:
    """A newer release had it and was killed; what it published is deleted."""
    deploy.run(Shop("Pack").service)
    deploy.given_to_one_that_died("Pack", not_after_ms=deploy.now_ms() + 60_000)
    older = deploy.run(Shop("Do").service)
    deploy.redis.hdel(KEYS.published("work"), "Pack")
    deploy.turns_of(older, deploy.answers)
    entries: Any = deploy.redis.xrange(ONLY.replies("work"))
    [(_, fields)] = entries
    assert json.loads(fields[b"body"])["type"] == "Pack_failed"
    assert fields[b"unknown"] == b"1"


@pytest.mark.parametrize("knows", ["not the command", "that it needs no undo"])
def test_an_undo_that_is_owed_is_not_answered_away_by_a_release_that_knows_none(deploy: Deploy, knows: str) -> None:
    newer = Shop("Pack", undone_by="Undo")
    runner = deploy.run(newer.service)
    entry_id = deploy.given_to_one_that_died("Pack")
    deploy.redis.hset(ONLY.done("work", 0), "s1/1/transaction/(void)", 1)
    older = Service("work")
    names = ["Other"] if knows == "not the command" else ["Other", "Pack"]
    for name in names:
        older.command(name, compensation=None)(lambda params, context: None)
    if knows == "not the command":
        deploy.redis.delete(KEYS.published("work"))
    deploy.turns_of(deploy.run(older), lambda: deploy.redis.xlen(WORK))
    for _ in range(3):
        deploy.redis.xclaim(WORK, "work", "dead", 0, [entry_id], idle=60_000)
        older_runner = deploy.run(older)
        older_runner._inbox.reader.leases._next_look = 0.0
        older_runner.turn(block_ms=1)
    assert deploy.answers() == []
    newer_again = deploy.run(newer.service) if knows == "not the command" else runner
    deploy.redis.xclaim(WORK, "work", "dead", 0, [entry_id], idle=60_000)
    deploy.turns_of(newer_again, deploy.answers)
    assert deploy.answers() == [("Pack_failed", "cancelled: Pack came after its compensation")]
    assert newer.did == ["Undo"]


@pytest.mark.parametrize("how", ["DESTROY", "SETID"])
def test_an_undo_that_is_owed_is_not_forgotten_with_the_group(
    deploy: Deploy, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The group gives the entry again as new, although its process has had its effect, and has died."""
    shop = Shop("Pack", undone_by="Undo")
    runner = deploy.run(shop.service)
    entry_id = deploy.deliver("Pack")
    deploy.redis.xreadgroup("work", "dead", {WORK: ">"})
    deploy.redis.hset(ONLY.done("work", 0), "s1/1/transaction/(void)", 1)

    def has_looked() -> bool:
        deploy.redis.xclaim(WORK, "work", "dead", 0, [entry_id])  # its lease lasts
        assert runner._inbox.reader._reached is not None
        return runner._inbox.reader._reached().get(WORK, (0, 0)) > (0, 0)

    deploy.turns_of(runner, has_looked)
    assert deploy.answers() == []
    if how == "DESTROY":
        deploy.redis.xgroup_destroy(WORK, "work")
    else:
        deploy.redis.xgroup_setid(WORK, "work", "0")
    deploy.turns_of(runner, deploy.answers)
    assert deploy.answers() == [("Pack_failed", "cancelled: Pack came after its compensation")]
    assert shop.did == ["Undo"]
    # What is added after that is new.
    deploy.deliver("Fly", attempt=1)
    deploy.turns_of(runner, lambda: len(deploy.answers()) == 2)
    entries: Any = deploy.redis.xrange(ONLY.replies("work"))
    assert b"unknown" not in entries[1][1]


def test_what_only_the_other_release_has_ends_once_nobody_waits_for_it(deploy: Deploy) -> None:
    deploy.run(Shop("Pack").service)
    older = deploy.run(Shop("Do").service)
    entry_id = deploy.deliver("Pack", not_after_ms=deploy.now_ms() + 700)
    deploy.turns_of(older, lambda: deploy.is_handed_back(entry_id))
    assert deploy.answers() == []
    deploy.turns_of(older, deploy.answers)
    [(kind, error)] = deploy.answers()
    assert kind == "Pack_failed"
    assert re.fullmatch(r"Pack came \d+ ms too late, and was not begun", error or "")


@pytest.mark.parametrize("has_the_undo", [False, True])
def test_an_undo_of_what_only_the_other_release_has_is_not_taken_for_needless(
    deploy: Deploy, has_the_undo: bool
) -> None:
    """A process that does not know a command must not say that nothing is left of it."""
    newer = Shop("Pack", undone_by="Undo")
    older = Shop("Do", undone_by="Undo") if has_the_undo else Shop("Do")
    runners = [deploy.run(newer.service), deploy.run(older.service)]
    entry_id = deploy.given_to_one_that_died("Pack")
    deploy.redis.hset(ONLY.done("work", 1), "s1/1/transaction/(void)", "1")
    deploy.turns_of(runners[1], lambda: older.did or deploy.is_handed_back(entry_id))
    if has_the_undo:
        assert older.did == ["Undo"]
    else:
        assert deploy.answers() == []
        assert not any(b"/undos/" in field for field in deploy.redis.hkeys(ONLY.done("work", 1)))
        deploy.turns_of(runners[0], lambda: newer.did)
        assert newer.did == ["Undo"]
    for runner in runners:
        deploy.turns_of(runner, lambda: True)
    assert deploy.answers() == [("Pack_failed", "cancelled: Pack came after its compensation")]


def test_a_compensation_that_has_got_another_name_is_still_left_to_the_release_that_has_it(deploy: Deploy) -> None:
    older, newer = Shop("Do", undone_by="Undo"), Shop("Do", undone_by="Revert")
    runners = [deploy.run(older.service), deploy.run(newer.service)]
    deploy.deliver("Undo", compensating=True)
    deploy.turns_of(runners[1], lambda: deploy.redis.xpending(WORK, "work")["pending"] == 1)
    assert deploy.answers() == []
    deploy.turns_of(runners[0], deploy.answers)
    assert (older.did, newer.did) == (["Undo"], [])


def test_what_does_not_say_what_undoes_it_is_published_too(deploy: Deploy) -> None:
    service = Service("work")
    service.command("Charge", call="shop.jobs.charge")
    service.compensation("Refund")(lambda params, context: None)
    deploy.redis.hset(KEYS.published("work"), "Known", "Unknow")
    runner = deploy.run(service)
    assert deploy.redis.hgetall(KEYS.published("work")) == {
        b"Charge": b"?",
        b"(Refund)": b"Refund",
        b"Known": b"Unknow",
    } | {b"Do": b"Undo", b"DoForGood": b""}
    assert published.read(deploy.redis, KEYS, ["work"]) == {
        "work": {"Known": "Unknow", "Do": "Undo", "DoForGood": None}
    }
    deploy.redis.hset(KEYS.published("work"), "Charge", "ByHand")
    runner._publication.join()
    assert deploy.redis.hget(KEYS.published("work"), "Charge") == b"ByHand"


def test_an_undo_that_nobody_names_is_a_try_like_any_other(deploy: Deploy) -> None:
    """That other commands need no undo says nothing of it."""
    service = Service("work", lease_ms=300)
    service.command("Charge", call="shop.jobs.charge")
    service.command("Remind", compensation=None)(lambda params, context: None)
    runner = deploy.run(service)
    entry_id = deploy.given_to_one_that_died("Charge")
    deploy.redis.hset(ONLY.done("work", 1), "s1/1/transaction/(void)", "1")
    counted = f"s1/1/transaction/Charge/undos/{entry_id.decode()}"
    deploy.turns_of(runner, lambda: deploy.redis.hget(ONLY.done("work", 1), counted) == b"1")
    assert deploy.answers() == []


# --- records


class Records(Deploy):
    """Two processes of one release, of a service whose records a newer release writes in another way."""

    def newer(self, service: Service) -> ServiceRunner:
        with newer_records():
            return self.run(service)

    def newer_turns_until(self, runner: ServiceRunner, condition: Callable[[], object]) -> None:
        with newer_records():
            self.turns_of(runner, condition)

    def record(self, name: str = "Do") -> bytes | None:
        direction = "compensation" if name.startswith("Un") else "transaction"
        found: Any = self.redis.hget(ONLY.done("work", 1), f"s1/1/{direction}/{name}")
        return found if found is None else bytes(found)


@pytest.fixture
def records(server: Server) -> Records:
    return Records(server.broker())


@pytest.mark.parametrize("tombstone", [False, True])
@pytest.mark.parametrize("record", [b"v9 ok 1", b'v9 failed "no"', b"v9 ", b"v123456789 what comes one day"])
@pytest.mark.parametrize("name", ["Do", "UnDo"])
def test_a_command_with_a_record_of_a_newer_release_is_left_to_it(
    records: Records, name: str, record: bytes, tombstone: bool
) -> None:
    shop = Shop("Do")
    runner = records.run(shop.service)
    compensating = name == "UnDo"
    field = f"s1/1/{'compensation' if compensating else 'transaction'}/{name}"
    records.redis.hset(ONLY.done("work", 1), field, record)
    if tombstone:
        records.redis.hset(ONLY.done("work", 1), "s1/1/transaction/(void)", "1")
    new = records.deliver(name, compensating=compensating)
    claimed = records.given_to_one_that_died(name, compensating=compensating)
    records.turns_of(runner, lambda: all(map(records.is_handed_back, (new, claimed))))
    assert (shop.did, records.answers(), records.record(name)) == ([], [], record)
    assert records.redis.xlen(ONLY.quarantine_of("work")) == 0


def test_releases_whose_records_differ_answer_for_each_other(records: Records) -> None:
    shop = Shop("Do")
    this, newer = records.run(shop.service), records.newer(shop.service)
    records.deliver("Do")
    records.newer_turns_until(newer, records.answers)
    assert records.record() == b"v9 ok 1"
    again = records.deliver("Do")
    records.turns_of(this, lambda: records.is_handed_back(again))
    records.newer_turns_until(newer, lambda: len(records.answers()) == 2)
    assert records.answers() == [("Do_ok", None)] * 2
    assert records.record() == b"v9 ok 1"
    assert shop.did == ["Do"]
    # The newer one reads what this one has recorded.
    records.deliver("UnDo", compensating=True)
    records.turns_of(this, lambda: len(records.answers()) == 3)
    records.deliver("UnDo", compensating=True)
    records.newer_turns_until(newer, lambda: len(records.answers()) == 4)
    assert shop.did == ["Do", "UnDo"]
    assert records.record("UnDo") == b"ok "


@pytest.mark.parametrize("record", [b"v9 ok 7", b'v9 failed "no"'])
def test_an_answer_does_not_replace_a_record_that_a_newer_release_wrote_meanwhile(
    records: Records, record: bytes
) -> None:
    """A rejection that is replaced by an effect would let the effect stand after the undo of earlier steps."""
    did: list[str] = []

    def do(params: Any, context: Context) -> Any:
        did.append("Do")
        records.redis.hset(ONLY.done("work", 1), "s1/1/transaction/Do", record)
        return params

    service = Service("work", lease_ms=300)
    service.command("Do", compensation="UnDo")(do)
    service.compensation("UnDo")(lambda params, context: did.append("UnDo"))
    this, newer = records.run(service), records.newer(service)
    entry_id = records.deliver("Do")
    records.turns_of(this, lambda: records.is_handed_back(entry_id))
    assert (did, records.answers(), records.record()) == (["Do"], [], record)
    records.newer_turns_until(newer, records.answers)
    assert records.record() == record
    if record == b"v9 ok 7":
        assert (did, records.answers()) == (["Do"], [("Do_ok", None)])
    else:
        assert (did, records.answers()) == (["Do", "UnDo"], [("Do_failed", "no")])


def test_what_was_done_after_a_newer_release_refused_and_acknowledged_it_is_undone(records: Records) -> None:
    did: list[str] = []

    def do(params: Any, context: Context) -> Any:
        did.append("Do")
        records.redis.hset(ONLY.done("work", 1), "s1/1/transaction/Do", b'v9 failed "no"')
        records.redis.xack(WORK, "work", entry_id)
        records.redis.xdel(WORK, entry_id)
        return params

    service = Service("work", lease_ms=300)
    service.command("Do", compensation="UnDo")(do)
    service.compensation("UnDo")(lambda params, context: did.append(f"UnDo {json.dumps(context.result)}"))
    this, newer = records.run(service), records.newer(service)
    entry_id = records.deliver("Do")
    records.turns_of(this, lambda: did and records.redis.xpending(WORK, "work")["pending"])
    assert records.answers() == []
    records.newer_turns_until(newer, records.answers)
    assert did == ["Do", "UnDo 1"]
    assert records.answers() == [("Do_failed", "no")]


@pytest.mark.slow
def test_no_saga_is_harmed_by_releases_of_services_whose_records_differ(world: World) -> None:
    chance = random.Random(20260301)
    world.start(workers=1, services=1)
    world.start(workers=0, services=1, release=Release(name="records", program=NEWER_RECORDS))
    world.options = {"timeout_ms": 400, "attempts": 8, "compensation_attempts": 8, "backoff_ms": 20}
    world.may_end_otherwise()
    world.run(lambda: world.kill(chance.choice(world.services)), every_s=0.25, times=KILLS)
    world.settle()
    world.retry_parked(SagaClient(world.server.broker()))
    world.verdict(unfit=("too late",))
    kept: set[bytes] = set()
    for key in world.redis.scan_iter("saga:{0}:done:*"):
        found: Any = world.redis.hgetall(key)
        kept |= {re.sub(rb" .*", b"", record) for field, record in found.items() if field.endswith(b"/Do")}
        nested = [record for record in found.values() if re.match(rb"(v9 )?(ok|failed) \"?(v9 )?(ok|failed)\b", record)]
        assert nested == []
    assert {b"ok", b"v9"} <= kept
