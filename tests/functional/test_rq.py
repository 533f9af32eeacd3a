"""Steps as RQ jobs, on real RQ workers: what is done once, what is refused, and what happens to jobs whose process
dies."""

import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import redis
from rq import Queue
from rq.command import send_stop_job_command
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from sagastream.broker.connection import connect
from sagastream.client.blocking import SagaClient
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import ok, reply_to
from sagastream.core.saga import SagaStatus
from sagastream.core.service_actions import Answer
from sagastream.rq_steps.dispatcher import on_rq
from sagastream.rq_steps.queues import SERVICES_VARIABLE, waiting_for_worker
from sagastream.store.job_names import job_id
from sagastream_bridge.inspection.doctor import Doctor
from support.page import Shell
from support.processes import Commands
from support.rq_workers import JOBS, RQ, SHOP, Fleet, Stage
from support.scenes import do
from support.servers import Server, alive
from support.stores import ONLY, divided, in_each
from support.streams import append_requests
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

#: In milliseconds: a step whose attempts are counted does not time out while RQ's processes start.
LONG_MS = 600_000


@pytest.fixture
def bash(server: Server, tmp_path: Path) -> Shell:
    return Shell(server, tmp_path)


@pytest.fixture
def fleet(server: Server, tmp_path: Path) -> Iterator[Fleet]:
    folder = tmp_path / "team"
    folder.mkdir()
    fleet = Fleet(folder, server.url)
    try:
        yield fleet
    finally:
        fleet.end()


@pytest.fixture
def stage(server: Server, fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("REDIS_URL", server.url)
    return Stage(server.broker(), fleet)


def test_a_handler_on_rq_is_told_the_input_the_definition_and_the_undo(stage: Stage) -> None:
    stage.fleet.worker()
    ask = do({"by": {"$ref": "/input/user"}}, "Ask", compensation="Unask", timeout_ms=LONG_MS)
    body = {
        "saga_id": "a",
        "input": {"user": "u1"},
        "definition": {"name": "trip", "version": 1, "sha256": "0" * 64},
        "steps": [
            ask | {"compensation_params": {"why": {"$ref": "/failure/reason"}}},
            do("fail", timeout_ms=LONG_MS),
        ],
    }
    append_requests(stage.redis, [parse_begin(body, request_id="r1")])
    state = stage.all_until(lambda: (found := stage.client.get("a")) and found.ended and found, what="it ends")
    assert state.steps[0].result_value == [{"user": "u1"}, "trip"]
    assert stage.effects_on_rq() == ["{'by': 'u1'} {'user': 'u1'} trip {'why': 'Step 2 failed: as asked'}"]


def test_steps_run_as_jobs_and_are_undone_by_jobs(stage: Stage) -> None:
    stage.fleet.worker()
    stage.begin(
        "s.1_a:b", do({"a": [1]}), do({"user": "u1"}, "Charge"), do(["u1", 2], "Charge"), do(4, "Later"), do("fail")
    )
    state = stage.play("s.1_a:b")
    assert (state.status, state.reason) == (SagaStatus.ABORTED, "Step 5 failed: as asked")
    assert [step.result for step in state.steps] == [b'{"a":[1]}', b'{"charged":1}', b'{"charged":2}', b"4", None]
    assert stage.effects_on_rq() == [
        "done s.1_a:b/1/transaction",
        "charged u1 1 as saga-work-s_d1__a_cb-2-transaction",
        "charged u1 2 as saga-work-s_d1__a_cb-3-transaction",
        "refunded u1 2",
        "refunded u1 1",
        "undone s.1_a:b/1/transaction",
    ]
    queue = Queue("steps", connection=stage.redis, serializer=JSONSerializer)
    until(lambda: queue.finished_job_registry.count == 8, what="RQ has all of them as finished")
    assert queue.failed_job_registry.count == 0
    job = Job.fetch("saga-work-s_d1__a_cb-1-transaction", connection=stage.redis, serializer=JSONSerializer)
    assert job.description == "Do of saga s.1_a:b, step 1, attempt 1"
    assert job.args == ["work", job.meta["entry"], False, 0, "saga"]


def test_a_worker_that_starts_on_a_full_store_waits_for_room(stage: Stage, commands: Commands) -> None:
    """Ours does; RQ's own command ends before it makes the worker."""
    log = commands.folder / "log"
    stage.redis.config_set("maxmemory", 1)
    try:
        with log.open("wb") as file:
            worker = commands.start(
                *("rq-worker", "shop:service"),
                env={"REDIS_URL": stage.fleet.env["REDIS_URL"], "PYTHONPATH": str(stage.fleet.folder)},
                stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            )  # fmt: skip
        until(lambda: "rq worker: the store is full: " in log.read_text(), what="it says so, and waits")
        assert worker.poll() is None
    finally:
        stage.redis.config_set("maxmemory", 0)
    stage.begin("s1", do(1))
    assert stage.play("s1").status is SagaStatus.COMPLETED
    assert "Traceback" not in log.read_text()


def test_params_that_a_function_does_not_take_reject_the_step(stage: Stage) -> None:
    stage.fleet.worker()
    stage.begin("s1", do({"usr": "u1"}, "Charge"))
    state = stage.play("s1")
    assert "malformed_params: jobs.charge: missing a required argument: 'user'" in (state.reason or "")
    assert stage.effects_on_rq() == []


def test_a_function_that_raises_is_called_once_an_attempt_and_undone(stage: Stage) -> None:
    stage.fleet.worker()
    stage.begin("s1", do({"user": "u", "amount": 11}, "Charge", attempts=1))
    state = stage.play("s1")
    assert state.reason == "Step 1 failed: ValueError: too much"
    assert stage.effects_on_rq() == ["charged u 11 as saga-work-s1-1-transaction", "refunded u 11"]


def as_json(*job: Any) -> bytes:
    return json.dumps(job).encode()


CLAIMS: dict[str, dict[str, Any]] = {
    "another function": {"data": as_json("os.system", None, ["touch pwned"], {})},
    "a pickle": {"data": pickle.dumps(("os.system", None, ("touch pwned",), {}))},
    "another function of the module": {
        "data": as_json("sagastream.rq_runner.load_services", None, [["evil:service"]], {})
    },
    "an instance": {"data": as_json("sagastream.rq_runner.run_step", "x", ["work", "1-1", False], {})},
    "another service": {"data": as_json("sagastream.rq_runner.run_step", None, ["evil:service", "1-1", False], {})},
    "no entry": {"data": as_json("sagastream.rq_runner.run_step", None, ["work", ["x"], False], {})},
    "callbacks": {
        "data": as_json("sagastream.rq_runner.run_step", None, ["work", "1-1", False], {}),
        "success_callback_name": "evil.callback",
        "failure_callback_name": "evil.callback",
        "stopped_callback_name": "evil.callback",
        "retries_left": "3",
    },
    "callbacks of what fails": {"data": b"[", "failure_callback_name": "evil.callback", "retries_left": "3"},
    "meta data that are a pickle": {"data": b"[", "meta": pickle.dumps(os.system)},
    "a status that is none": {"data": b"[", "status": "\x1b[31m"},
}


def test_a_job_that_is_no_step_is_refused_whatever_it_claims(stage: Stage) -> None:
    """Even if the command line allows pickle."""
    (stage.fleet.folder / "evil.py").write_text("open('pwned', 'w')\n")
    queue = Queue("steps", connection=stage.redis)
    for number, claim in enumerate(CLAIMS.values()):
        usual = {"origin": "steps", "status": "queued", "created_at": "2026-01-01T00:00:00.000000Z", "timeout": "60"}
        stage.redis.hset(Job.key_for(f"evil-{number}"), mapping=usual | claim)
        stage.redis.rpush(queue.key, f"evil-{number}")
    stage.redis.rpush(queue.key, "no id at all", "no-such-job")
    stage.redis.set(Job.key_for("a-string"), "x")
    stage.redis.rpush(queue.key, "a-string")
    worker = stage.fleet.worker("-S", "rq.serializers.DefaultSerializer")
    stage.begin("s1", do("last"))
    assert stage.play("s1").status is SagaStatus.COMPLETED
    assert worker.poll() is None
    assert not (stage.fleet.folder / "pwned").exists()
    assert stage.effects_on_rq() == ["done s1/1/transaction"]
    for reason in (
        "JobRefused: this worker runs the steps of sagas only, not os.system",
        "JobRefused: this worker runs the steps of sagas only, not sagastream.rq_runner.load_services",
        "JobRefused: this worker does not run the service evil:service; it runs work",
        "JobRefused: the job does not name the entry of a command",
        "passed over the job 'a-string', which cannot be read: ResponseError: WRONGTYPE",
    ):
        assert reason in stage.fleet.said
    failed = [
        number
        for number in range(len(CLAIMS))
        if stage.redis.hget(Job.key_for(f"evil-{number}"), "status") == b"failed"
    ]
    assert failed == [0, 1, 2, 3, 4, 5, 7, 8]  # 6 is a step, but its entry does not exist; 9 was passed over
    assert b"\x1b[31m" not in (stage.fleet.folder / "rq.log").read_bytes()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ["-S", "rq.serializers.JSONSerializer"],
            "JobRefused: this worker does not run the service work; it runs none; it is to be started as rq worker -w",
        ),
        ([], "failed: rq.exceptions.DeserializationError; run it with rq worker -w sagastream.rq_runner.SagaWorker"),
    ],
    ids=["that reads jobs as JSON", "as RQ starts it"],
)
def test_a_worker_of_another_class_runs_no_step_and_the_reason_says_which_to_start(
    stage: Stage, options: list[str], why: str
) -> None:
    worker = subprocess.Popen(
        [RQ, "worker", *options, "steps"],
        cwd=stage.fleet.folder,
        env=stage.fleet.env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stage.fleet.workers.append(worker)
    stage.begin("s1", do(1, attempts=1, compensation=None))
    state = stage.play("s1")
    assert why in (state.reason or "")
    assert stage.effects_on_rq() == []


def test_a_job_that_a_worker_of_another_release_takes_is_run_by_one_that_has_the_command(stage: Stage) -> None:
    older = stage.fleet.worker(services="older:service")
    stage.begin("s1", do(1), do("fail"))
    stage.all_until(
        lambda: "has no Do, which another release of the service publishes" in stage.fleet.said, what="left"
    )
    assert stage.state("s1").steps[0].attempt == 1
    older.terminate()
    older.wait()
    stage.fleet.worker()
    state = stage.play("s1")
    assert (state.status, state.reason) == (SagaStatus.ABORTED, "Step 2 failed: as asked")
    assert [step.attempt for step in state.steps] == [1, 1]
    assert stage.effects_on_rq() == ["done s1/1/transaction", "undone s1/1/transaction"]


def test_a_job_that_no_worker_has_the_command_for_ends_once_nobody_waits_for_it(stage: Stage) -> None:
    stage.fleet.worker(services="older:service")
    stage.begin("s1", do(1, timeout_ms=1500, attempts=1, compensation=None))
    state = stage.play("s1")
    assert (state.status, state.steps[0].unknown) == (SagaStatus.ABORTED, True)
    stage.all_until(lambda: not stage.redis.xlen(ONLY.commands("work")), what="the command is answered")


def test_a_work_horse_that_is_killed_is_an_unknown_outcome_and_the_next_attempt_does_it(stage: Stage) -> None:
    stage.fleet.worker()
    stage.begin("s1", do("die", backoff_ms=1, timeout_ms=LONG_MS))
    state = stage.play("s1")
    assert state.status is SagaStatus.COMPLETED
    assert state.steps[0].attempt == 2
    assert stage.effects_on_rq() == ["done s1/1/transaction"]


@pytest.mark.parametrize("how", ["stopped", "deleted"])
def test_a_job_that_an_operator_ends_is_an_unknown_outcome_and_undone(stage: Stage, how: str) -> None:
    stage.fleet.worker()
    stage.begin("s1", do("wait", attempts=1))
    horse = stage.begun()
    if how == "stopped":
        send_stop_job_command(stage.redis, "saga-work-s1-1-transaction", serializer=JSONSerializer)
        until(lambda: not alive(horse), what="the work horse is gone")
    else:
        stage.job("s1").delete()
        os.kill(horse, signal.SIGKILL)
    state = stage.play("s1")
    assert state.status is SagaStatus.ABORTED
    said = "stopped: Job stopped by user, work-horse terminated." if how == "stopped" else "is gone: it was deleted"
    assert said in (state.reason or "")
    assert state.steps[0].unknown
    assert stage.effects_on_rq() == ["undone s1/1/transaction"]


def test_no_handler_swallows_the_time_limit(stage: Stage) -> None:
    stage.fleet.worker()
    stage.begin("s1", do(1, "Swallow", attempts=1))
    state = stage.play("s1")
    assert "JobTimedOut: Task exceeded maximum timeout value (1 seconds)" in (state.reason or "")


def test_a_worker_that_is_killed_with_its_work_horse_is_given_up_and_another_does_it(stage: Stage) -> None:
    worker = stage.fleet.worker()
    stage.begin("s1", do("wait", backoff_ms=1, timeout_ms=LONG_MS))
    horse = stage.begun()
    worker.kill()
    os.kill(horse, signal.SIGKILL)
    until(lambda: not alive(horse), what="the work horse is gone")
    # Nobody has told RQ: after this time RQ no longer counts it as alive.
    registry = StartedJobRegistry("steps", connection=stage.redis)
    executions: Any = stage.redis.zrange(registry.key, 0, -1)
    stage.redis.zadd(registry.key, {executions[0]: time.time() - 1})
    queue = Queue("steps", connection=stage.redis)
    stage.all_until(lambda: queue.count == 1, what="the next attempt is a job of its own")
    stage.fleet.worker()
    stage.redis.rpush("go", "1")
    state = stage.play("s1")
    assert (state.status, state.steps[0].attempt) == (SagaStatus.COMPLETED, 2)
    assert stage.effects_on_rq() == ["done s1/1/transaction"]
    until(lambda: registry.count == 0, what="RQ has put the job away")  # which it does after the answer


def test_a_worker_that_is_killed_alone_leaves_a_work_horse_that_answers(stage: Stage) -> None:
    worker = stage.fleet.worker()
    stage.begin("s1", do("wait"))
    stage.begun()
    worker.kill()
    stage.redis.rpush("go", "1")
    assert stage.play("s1").status is SagaStatus.COMPLETED
    assert stage.effects_on_rq() == ["done s1/1/transaction"]


def test_a_job_that_a_dying_worker_took_off_the_queue_is_missed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sagastream.rq_steps.dispatcher._SEARCH_EVERY_S", 0.0)
    stage.begin("s1", do(1, backoff_ms=1, timeout_ms=LONG_MS))
    queue = Queue("steps", connection=stage.redis)
    stage.all_until(lambda: queue.count == 1, what="the job is in the queue")
    assert queue.pop_job_id() == "saga-work-s1-1-transaction"  # it dies here
    stage.fleet.worker()
    state = stage.play("s1")
    assert (state.status, state.steps[0].attempt) == (SagaStatus.COMPLETED, 2)
    assert stage.effects_on_rq() == ["done s1/1/transaction"]


def test_jobs_for_which_no_worker_runs_are_told_of_by_the_service_and_the_doctor(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("sagastream.rq_steps.dispatcher._SEARCH_EVERY_S", 0.0)

    def complaints() -> list[str]:
        return [line for line in caplog.messages if "no RQ worker" in line]

    stage.fleet.worker(queue="others")
    stage.begin("s1", do(1))
    stage.begin("s2", do(2))
    # A worker that was killed long ago, and that RQ has not removed.
    stage.redis.sadd("rq:workers:steps", "rq:worker:gone")
    start = "SAGASTREAM_SERVICES=MODULE:NAME rq worker -w sagastream.rq_runner.SagaWorker steps"
    (complaint,) = stage.all_until(complaints, what="the service says so")
    own = "sagastream rq-worker MODULE:NAME"
    says = f"jobs that wait: 2; start {own} or, if REDIS_URL is set, {start}"
    assert complaint == f"no RQ worker works on queue steps: {says}"
    stage.redis.rpush("rq:queue:of-others", "a-job-of-theirs")
    stage.redis.sadd("rq:queues", "rq:queue:of-others")
    told = [finding for finding in Doctor(stage.broker).examine() if "queue" in finding.about]
    remedy = (f"{own}  # starts one", f"{start}  # so does this, if REDIS_URL is set")
    assert [(one.level, one.about, one.text, one.do) for one in told] == [
        ("problem", "queue steps", "no RQ worker works on it; jobs that wait: 2", remedy)
    ]
    searches: list[dict[str, int]] = []

    def search(*given: Any) -> dict[str, int]:
        searches.append(waiting_for_worker(*given))
        return searches[-1]

    monkeypatch.setattr("sagastream.rq_steps.jobs.waiting_for_worker", search)
    stage.all_until(lambda: len(searches) > 2, what="it has looked again")
    assert searches[1] == {"steps": 2}
    assert len(complaints()) == 1  # once a minute
    stage.fleet.worker()
    assert stage.play("s1").status is SagaStatus.COMPLETED
    assert stage.play("s2").status is SagaStatus.COMPLETED
    assert [finding for finding in Doctor(stage.broker).examine() if "queue" in finding.about] == []


def test_a_job_that_nobody_waits_for_any_more_is_taken_off_the_queue(stage: Stage) -> None:
    stage.begin("s1", do(1, attempts=1, timeout_ms=50))
    queue = Queue("steps", connection=stage.redis, serializer=JSONSerializer)
    stage.all_until(lambda: queue.job_ids == ["saga-work-s1-1-compensation"], what="only its compensation is left")
    assert not Job.exists("saga-work-s1-1-transaction", stage.redis)
    stage.fleet.worker()
    assert stage.play("s1").status is SagaStatus.ABORTED
    assert stage.effects_on_rq() == ["undone s1/1/transaction"]


def test_a_dispatcher_that_dies_before_or_after_it_has_sent_a_job_leaves_it_to_another(stage: Stage) -> None:
    """Before: it has read the command. After: it has enqueued the job."""
    before, after = stage.dispatcher(), stage.dispatcher()
    stage.begin("s1", do(1))
    stage.turns_until(lambda: stage.redis.xlen(ONLY.commands("work")) == 1)
    assert len(before._inbox.read(1)) == 1
    stage.begin("s2", do("wait"))
    stage.turns_until(lambda: stage.redis.xlen(ONLY.commands("work")) == 2)
    after.turn(block_ms=1)
    assert stage.redis.lrange("rq:queue:steps", 0, -1) == [b"saga-work-s2-1-transaction"]
    stage.fleet.worker()
    stage.begun()
    until(lambda: len(pending(stage, 2000)) == 2, what="their lease is over")
    stage.all_until(lambda: Job.exists("saga-work-s1-1-transaction", stage.redis), what="another takes over")
    stage.redis.rpush("go", "1")
    assert stage.play("s2").status is SagaStatus.COMPLETED
    assert stage.play("s1").status is SagaStatus.COMPLETED
    assert sorted(stage.effects_on_rq()) == ["done s1/1/transaction", "done s2/1/transaction"]


def test_a_command_that_comes_again_meanwhile_is_no_second_job(stage: Stage) -> None:
    """The same delivery again, a later attempt, and the same job put back by hand after it is done."""
    stage.fleet.worker()
    stage.begin("s1", do("wait"), do("fail"))
    stage.begun()
    entries: Any = stage.redis.xrange(ONLY.commands("work"))
    fields = entries[0][1]
    stage.redis.xadd(ONLY.commands("work"), fields)
    stage.redis.xadd(ONLY.commands("work"), fields | {b"attempt": b"2"})
    stage.all_until(lambda: len(pending(stage)) == 3, what="they are in flight")
    stage.redis.rpush("go", "1")

    def all_are_answered() -> bool:
        # Before a worker moves the saga on: what is not answered when its step is undone, is undone once more.
        stage.runner.turn(block_ms=1)
        return not pending(stage)

    until(all_are_answered, what="all three are answered")
    assert stage.effects_on_rq() == ["done s1/1/transaction"]
    assert stage.play("s1").status is SagaStatus.ABORTED
    assert stage.effects_on_rq() == ["done s1/1/transaction", "undone s1/1/transaction"]
    job = stage.job("s1", "compensation")
    until(lambda: job.get_status() == JobStatus.FINISHED, what="RQ knows the end of it")
    Queue("steps", connection=stage.redis, serializer=JSONSerializer).enqueue_job(job)
    until(lambda: "was answered before" in str(stage.job("s1", "compensation").return_value()), what="it ran again")
    assert stage.effects_on_rq() == ["done s1/1/transaction", "undone s1/1/transaction"]


def test_what_a_job_does_after_its_step_was_undone_is_undone_in_the_job(stage: Stage) -> None:
    stage.fleet.worker()
    stage.fleet.worker()
    stage.begin("s1", do("wait", attempts=1))
    stage.begun()
    body = b'{"type":"Undo","saga_id":"s1","step":1,"compensating":true}'
    begun_ms = stage.state("s1").begun_ms
    stage.redis.xadd(ONLY.commands("work"), {"body": body, "begun_ms": begun_ms, "params": b'"wait"'})
    stage.all_until(stage.effects_on_rq, what="it is undone")
    stage.redis.rpush("go", "1")
    assert stage.play("s1").reason == "Step 1 failed: cancelled: Do came after its compensation"
    assert stage.effects_on_rq() == ["undone s1/1/transaction", "done s1/1/transaction", "undone s1/1/transaction"]


def test_no_more_jobs_are_out_than_the_command_says(stage: Stage) -> None:
    for number in range(8):
        stage.begin(f"s{number}", do(number))
    queue = Queue("steps", connection=stage.redis)
    stage.all_until(lambda: queue.count == 3, what="three are out")
    for _ in range(20):
        stage.runner.turn(block_ms=1)
        assert queue.count == 3
    stage.fleet.worker("--burst")
    stage.fleet.worker()
    for number in range(8):
        assert stage.play(f"s{number}").status is SagaStatus.COMPLETED
    assert sorted(stage.effects_on_rq()) == [f"done s{number}/1/transaction" for number in range(8)]


def test_a_dispatcher_that_is_stopped_hands_over_at_once_and_its_jobs_go_on(stage: Stage, commands: Commands) -> None:
    (commands.folder / "shop.py").write_text(SHOP.replace("lease_ms=2000", "lease_ms=600_000"))
    env = {"REDIS_URL": stage.broker.url}
    first = commands.start("service", "shop:service", env=env)
    stage.fleet.worker()
    stage.begin("s1", do("wait"))
    stage.turns_until(lambda: stage.redis.llen("begun") == 1)
    first.terminate()
    assert first.wait(60) == 0
    commands.quiet("service", "shop:service", env=env)
    until(lambda: [p for p in pending(stage) if p["time_since_delivered"] < 3000], what="another has it")
    horses: Any = stage.redis.lrange("begun", 0, 0)
    os.kill(int(horses[0]), signal.SIGKILL)
    stage.redis.rpush("go", "1", "1")
    stage.turns_until(lambda: (state := stage.client.get("s1")) is not None and state.ended)
    assert stage.state("s1").status is SagaStatus.COMPLETED
    assert stage.effects_on_rq() == ["done s1/1/transaction"]


def pending(stage: Stage, idle_ms: int = 0) -> list[dict[str, Any]]:
    found: Any = stage.redis.xpending_range(ONLY.commands("work"), "work", "-", "+", 100, idle=idle_ms)
    return list(found)


TYPOS = """
from sagastream import Service

service = Service("typos")
service.command("Do", call="jobs.charg", compensation="Undo", via="rq")
service.compensation("Undo", call="job.refund", via="rq")
service.command("Here", call="nowhere.else")  # which is for the process of the service
"""


@pytest.mark.parametrize(
    ("services", "complaint"),
    [
        ("", "SAGASTREAM_SERVICES is not set; it names the services to run, as MODULE:NAME"),
        ("nowhere:service", "cannot import nowhere: No module named 'nowhere'; run it where the module is found"),
        ("sagastream_stubs.payment:service", "no step of sagastream_stubs.payment:service runs on RQ; declare one"),
        (
            "typos:service",
            (
                "service typos: Do: cannot import jobs.charg: AttributeError: module 'jobs' has no attribute 'charg'; "
                "Undo: cannot import job.refund: ModuleNotFoundError: No module named 'job'; run it where the modules"
            ),
        ),
    ],
)
def test_a_worker_that_cannot_work_says_so_in_one_line(fleet: Fleet, services: str, complaint: str) -> None:
    fleet.env[SERVICES_VARIABLE] = services
    (fleet.folder / "typos.py").write_text(TYPOS)
    assert fleet.worker().wait(60) == 1
    assert fleet.said.count("\n") == 1
    assert fleet.said.startswith(f"rq worker: {complaint}")


def test_a_worker_says_which_steps_it_runs(fleet: Fleet) -> None:
    fleet.worker("--burst", queue="step")
    assert fleet.workers[0].wait(60) == 0
    said = [line for line in fleet.said.splitlines() if line.startswith("rq worker: ")]
    assert said == [
        "rq worker: warning: steps of work wait in queue steps too, on which this worker does not work",
        "rq worker: warning: works on queue step, in which no step of work runs",
    ]


# --- what RQ workers log

TOLD = [
    "rq worker: runs steps of work, of queue steps",
    r"shop.till: telling a\x1b[1m [saga s1, step 1, attempt 1]",
]


def of_ours(lines: Sequence[str]) -> list[str]:
    """The lines that are not RQ's: those begin with a time, or with the name of RQ's logger."""
    return [line for line in lines if not re.match(r"\d\d:\d\d:\d\d |rq\.", line)]


def test_where_rq_starts_the_worker_its_lines_stay_its_own_and_ours_are_there_too(stage: Stage) -> None:
    stage.fleet.worker()
    stage.begin("s1", do("a", "Tell"))
    assert stage.play("s1").status is SagaStatus.COMPLETED
    lines = stage.fleet.said.splitlines()
    assert of_ours(lines) == TOLD
    assert sum("Listening on" in line for line in lines) == 1


def test_where_rq_starts_the_worker_ours_are_as_the_environment_says(stage: Stage) -> None:
    stage.fleet.env = stage.fleet.env | {"SAGASTREAM_LOG_FORMAT": "json"}
    stage.fleet.worker()
    stage.begin("s1", do("a", "Tell"))
    assert stage.play("s1").status is SagaStatus.COMPLETED
    runs, told = (json.loads(line) for line in of_ours(stage.fleet.said.splitlines()))
    assert (runs["logger"], runs["message"]) == ("sagastream.rq", "runs steps of work, of queue steps")
    assert (told["logger"], told["saga_id"], told["step"], told["attempt"]) == ("shop.till", "s1", 1, 1)


def test_a_worker_whose_user_has_configured_logging_logs_as_that_says(stage: Stage) -> None:
    settings = """
import logging, os
REDIS_URL = os.environ["REDIS_URL"]
logging.basicConfig(format="%(levelname)s/%(name)s/%(message)s", level="INFO")
"""
    (stage.fleet.folder / "settings.py").write_text(settings)
    stage.fleet.worker("-c", "settings", "--path", ".")
    stage.begin("s1", do("a", "Tell"))
    assert stage.play("s1").status is SagaStatus.COMPLETED
    lines = stage.fleet.said.splitlines()
    assert lines.count("INFO/sagastream.rq/runs steps of work, of queue steps") == 1
    assert sum(line.startswith("INFO/shop.till/telling a") for line in lines) == 1
    assert not any(line.startswith("rq worker: ") for line in lines)


@pytest.mark.parametrize("written", ["text", "json"])
def test_our_own_command_writes_all_lines_in_one_format(stage: Stage, commands: Commands, written: str) -> None:
    with (commands.folder / "log").open("wb") as log:
        commands.start(
            *("rq-worker", "shop:service", "--log-format", written),
            env={"REDIS_URL": stage.fleet.env["REDIS_URL"], "PYTHONPATH": str(stage.fleet.folder)},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    stage.begin("s1", do("a", "Tell"))
    assert stage.play("s1").status is SagaStatus.COMPLETED
    lines = [line for line in (commands.folder / "log").read_text().splitlines(keepends=True) if line.endswith("\n")]
    if written == "text":
        assert of_ours([line.rstrip("\n") for line in lines]) == TOLD
        assert sum(line.startswith("rq.worker: *** Listening on steps") for line in lines) == 1
    else:
        told = [json.loads(line) for line in lines]
        assert sum(one["logger"] == "rq.worker" and "Listening on" in one["message"] for one in told) == 1
        assert [one["saga_id"] for one in told if one["logger"] == "shop.till"] == ["s1"]


OBSERVED = """
from sagastream.rq_runner import SagaWorker
from sagastream.telemetry import Observer


class ToFile(Observer):
    def __getattribute__(self, name):
        def write(**arguments):
            with open("observed", "a") as file:
                print(name, arguments.get("kind") or arguments["command"].saga_id, file=file)
        return write


class ObservedWorker(SagaWorker):
    observer = ToFile()
"""


def test_a_worker_of_a_subclass_tells_its_observer(stage: Stage) -> None:
    (stage.fleet.folder / "observed_worker.py").write_text(OBSERVED)
    stage.fleet.worker("-w", "observed_worker.ObservedWorker", "--path", ".")
    stage.begin("s1", do("a", "Tell"))
    assert stage.play("s1").status is SagaStatus.COMPLETED
    stage.fleet.workers[0].terminate()
    assert stage.fleet.workers[0].wait(60) == 0
    assert (stage.fleet.folder / "observed").read_text().splitlines() == [
        "process_started rq",
        "command_delivered s1",
        "handler_started s1",
        "handler_finished s1",
        "answer_sent s1",
        "process_stopped rq",
    ]


GUIDE = (Path(__file__).parents[2] / "docs" / "rq.md").read_text()


def test_the_service_of_the_guide_runs_as_it_stands_there(server: Server, commands: Commands) -> None:
    for name, code in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", GUIDE, re.DOTALL):
        (commands.folder / name).write_text(code)
    [lines] = re.findall(r"\n\n((?:    sagastream .*\n)(?:    .*\n)+)", GUIDE)
    env = commands.environment(REDIS_URL=server.url, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    script = f"{lines}\nread -r; kill $(jobs -p); wait"
    with (commands.folder / "log").open("wb") as log:
        running = subprocess.Popen(
            ["bash", "-c", script], cwd=commands.folder, env=env, stdin=subprocess.PIPE, stdout=log, stderr=log
        )
    commands.quiet("worker", env={"REDIS_URL": server.url})
    steps = [do(None, "PackParcel", "shop"), do({"user": "u", "amount": 5}, "Charge", "shop")]
    saga = json.dumps({"saga_id": "o-1", "steps": [*steps, do(["u", 500], "Charge", "shop")]})
    done = commands.run("begin", "-", "--wait", given=saga, REDIS_URL=server.url)
    assert done.stdout == "o-1 ABORTED: Step 3 failed: insufficient_funds\n"
    running.communicate(b"\n", timeout=60)
    said = (commands.folder / "log").read_text()
    undone = [line for line in said.splitlines() if line.startswith(("refunded", "unpacked"))]
    assert undone == ["refunded u 5", "unpacked what was packed under o-1/1/transaction"]


NOTIFICATION = """
import os, signal, threading
from sagastream import Service

service = Service("notification", lease_ms=2000)


@service.command("Do", compensation="Undo", via="rq")
def do(params, context):
    if params == "die" and context.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)


@service.compensation("Undo", via="rq")
def undo(params, context):
    pass


@service.command("Slow", compensation=None, via="rq", timeout_s=1)
def slow(params, context):
    threading.Event().wait(30)
"""


def test_a_service_and_its_workers_run_steps_as_the_users_of_the_guide(
    server: Server, commands: Commands, bash: Shell
) -> None:
    for_service, for_workers = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    bash.run(for_service)
    bash.run(for_workers)
    service_url, workers_url = (
        server.url.replace("unix://", f"unix://{user}:secret@") for user in ("notification", "notification-jobs")
    )
    (commands.folder / "shop.py").write_text(NOTIFICATION)
    broker = server.broker()
    commands.quiet("worker", env={"REDIS_URL": server.url})
    service = commands.start("service", "shop:service", env={"REDIS_URL": service_url})
    workers = commands.start("rq-worker", "shop:service", env={"REDIS_URL": workers_url})
    sagas = SagaClient(broker)
    steps = [
        do("die", service="notification", backoff_ms=1, timeout_ms=LONG_MS),
        do(1, "Slow", "notification", attempts=1, timeout_ms=LONG_MS),
    ]
    sagas.begin("s1", steps)
    assert "JobTimedOut" in (sagas.wait("s1", 240).reason or "")
    state = sagas.get("s1")
    assert state is not None
    assert state.steps[0].attempt == 2
    for process in (workers, service):
        process.terminate()
        assert "NOPERM" not in process.communicate(timeout=60)[1].decode()
        assert process.returncode == 0
    assert broker.client.acl_log() == []
    for url, forbidden in (
        (service_url, ["LPUSH", "rq:queue:payment", "x"]),
        (service_url, ["HGETALL", "rq:job:of-others"]),
        (service_url, ["HGETALL", "rq:job:saga-payment-s1-1-transaction"]),
        (service_url, ["DEL", "rq:job:saga-notification_hnot-s1-1-transaction"]),
        (workers_url, ["XRANGE", ONLY.commands("payment"), "-", "+"]),
        (workers_url, ["HGETALL", ONLY.saga("s1")]),
        (workers_url, ["SCAN", "0"]),
    ):
        with connect(url) as client, pytest.raises(redis.ResponseError, match="permission"):
            client.execute_command(*forbidden)


PROCFILE = (Path(__file__).parents[2] / "Procfile").read_text()


def test_the_procfile_runs_the_samples_with_shipments_on_rq(server: Server, commands: Commands, tmp_path: Path) -> None:
    env = commands.environment(REDIS_URL=server.url, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    running = []
    for line in PROCFILE.splitlines():
        name, _, command = line.partition(": ")
        with (tmp_path / f"{name}.log").open("wb") as log:
            running.append(
                subprocess.Popen(["bash", "-c", command], cwd=commands.folder, env=env, stdout=log, stderr=log)
            )
    try:
        steps = [
            do({"sku": "abc123", "quantity": 1}, "ReserveInventory", "inventory"),
            do({"order_id": "o1"}, "CreateShipment", "shipping"),
            do({"user_id": "u999", "amount": 99999}, "ChargePayment", "payment"),
        ]
        saga = json.dumps({"saga_id": "order-1", "steps": steps})
        done = commands.run("begin", "-", "--wait", given=saga, REDIS_URL=server.url)
        assert done.stdout == "order-1 ABORTED: Step 3 failed: insufficient_funds\n"
        said = (tmp_path / "shipping-jobs.log").read_text()
        assert "saga-shipping-order-1-2-transaction" in said
        assert "saga-shipping-order-1-2-compensation" in said
    finally:
        for process in running:
            process.terminate()
        assert [process.wait(60) for process in running] == [0] * len(running)


def test_a_service_on_rq_needs_no_more_than_up(commands: Commands) -> None:
    """On an embedded broker, with an RQ worker that `up` starts."""
    (commands.folder / "shop.py").write_text(SHOP)
    (commands.folder / "jobs.py").write_text(JOBS)
    commands.quiet("up", "--service", "shop:service")
    saga = '{"saga_id": "s1", "steps": [{"transaction": "Charge", "service": "work", "params": {"user": "u"}}]}'
    assert commands.run("begin", "-", "--wait", given=saga).stdout == "s1 COMPLETED\n"


def test_a_dispatcher_whose_last_job_has_ended_sends_what_waits_though_the_broker_failed_at_first(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sagastream.rq_steps.dispatcher._LOOK_EVERY_WHEN_FULL_S", 0.0)
    dispatcher = on_rq(stage.broker, stage.service)(stage.runner._inbox, "dispatcher")
    for number in range(4):
        stage.begin(f"s{number}", do(number))
    stage.turns_until(lambda: stage.redis.xlen(ONLY.commands("work")) == 4)
    *out, waiting = stage.runner._inbox.read(1)
    for delivery in (*out, waiting):
        dispatcher.send(delivery)
    for delivery in out:
        done = reply_to(delivery.command, ok("Do"))
        stage.runner._inbox.outbox.answer(delivery, Answer(done, "ok"))
    stage.runner._inbox.outbox.send()
    with monkeypatch.context() as cut:
        cut.setattr(dispatcher._jobs, "enqueue", Mock(side_effect=redis.ConnectionError))
        with pytest.raises(redis.ConnectionError):
            until(dispatcher.turn, what="it looks at the jobs")
    assert dispatcher.room() == 0

    def reads_on() -> bool:
        dispatcher.turn()
        return dispatcher.room() > 0

    until(reads_on, what="what waited is out")
    assert Job.exists(job_id(waiting.command), stage.redis)


def test_jobs_run_in_every_partition_of_a_store_with_a_prefix(
    server: Server, fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The RQ worker itself was started for another store: each job says to which one it belongs."""
    monkeypatch.setenv("REDIS_URL", server.url)
    monkeypatch.setenv("SAGASTREAM_PREFIX", "shop")
    keys = divided(server.broker())
    stage = Stage(server.broker(), fleet)
    fleet.worker()
    ids = in_each(keys)
    for saga_id in ids:
        stage.client.begin(saga_id, [do(1), do("fail")])
    ends = [stage.play(saga_id).status for saga_id in ids]
    assert ends == [SagaStatus.ABORTED] * 3
    places = ("saga_xshop", "saga_xshop_p1", "saga_xshop_p2")
    for saga_id, place in zip(ids, places, strict=True):
        job = Job.fetch(f"{place}-work-{saga_id}-1-compensation", connection=stage.redis, serializer=JSONSerializer)
        assert job.args[3:] == [keys.of(saga_id).number, "shop"]
    assert not list(stage.redis.scan_iter("saga:*"))
