"""Steps as RQ jobs: ids, what is accepted as a job, functions by name, declarations."""

import re
import subprocess
import sys
import types
from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st
from rq.serializers import JSONSerializer
from rq.timeouts import HorseMonitorTimeoutException, JobTimeoutException

from sagastream import Reject, Service
from sagastream.core.commands import Command
from sagastream.errors import JobRefused, ServiceError
from sagastream.rq_steps.job_meta import entry_and_left
from sagastream.rq_steps.jobs import JobState
from sagastream.rq_steps.services import coverage
from sagastream.rq_steps.worker import JobTimedOut, SagaJob, _TimeLimit, run_step
from sagastream.service.named_function import NamedFunction
from sagastream.store.job_names import begins, job_id, patterns

NOWHERE = redis.Redis(port=1)


def command(saga_id: str, step: int = 1, *, compensating: bool = False, attempt: int = 1) -> Command:
    return Command(
        service="work",
        type="Do",
        saga_id=saga_id,
        step=step,
        params=b"null",
        compensating=compensating,
        attempt=attempt,
        begun_ms=0,
    )


COMMANDS = st.builds(
    command, st.text("a_-.:1dc", min_size=1, max_size=8), st.integers(1, 100), compensating=st.booleans()
)


@given(COMMANDS, COMMANDS)
@example(command("a_d"), command("a."))
@example(command("a-1", 2), command("a", 1))
@example(command("a__c"), command("a_:"))
def test_no_two_steps_share_a_job_id_and_rq_accepts_it(one: Command, other: Command) -> None:
    assert (job_id(one) == job_id(other)) == (one.key == other.key)
    assert re.fullmatch("[A-Za-z0-9_-]+", job_id(one))


IDS = st.text("a_-.:1dcxp", min_size=1, max_size=8)
NAMES = st.text("a_-.1p2", min_size=1, max_size=6)


@given(NAMES, NAMES, IDS, st.sampled_from(["saga", "shop"]), st.integers(0, 255))
@example("till", "till-eu", "s", "saga", 0)
@example("till", "other", "till-s", "saga", 0)
@example("a", "p2-a", "s", "saga", 0)
@example("1", "11", "11", "saga", 1)
def test_the_patterns_of_a_service_are_those_of_its_jobs_and_of_no_others(
    service: str, other: str, saga_id: str, prefix: str, partition: int
) -> None:
    one = job_id(msgspec.structs.replace(command(saga_id), service=service), prefix=prefix, partition=partition)
    for name in (service, other):
        own = patterns(name, prefix, divided=partition > 0)
        assert any(fnmatchcase(one, pattern) for pattern in own) == (name == service)


def test_every_attempt_has_the_same_job_id() -> None:
    assert job_id(command("s", attempt=1)) == job_id(command("s", attempt=2)) == "saga-work-s-1-transaction"


@pytest.mark.parametrize("meta", [None, b"", b"{", b"[]", b"{}", b'{"entry":1}', b"\x80\x04", b"[" * 100_000])
def test_meta_data_that_name_no_entry_name_none(meta: bytes | None) -> None:
    assert entry_and_left(meta) == (None, False)


@pytest.mark.parametrize(("left", "expected"), [(b"true", True), (b"false", False), (b"1", False), (b'"x"', False)])
def test_meta_data_say_whether_the_job_was_left_to_another_release(left: bytes, expected: bool) -> None:
    assert entry_and_left(b'{"entry":"1-0","left":%s}' % left) == ("1-0", expected)


@pytest.mark.parametrize(
    ("state", "is_live"),
    [
        (JobState(), False),
        (JobState(status=b"queued"), True),
        (JobState(status=b"started"), True),
        (JobState(status=b"started", abandoned=(b"x",)), False),
        (JobState(status=b"finished"), False),
        (JobState(status=b"failed"), False),
        (JobState(status=b"stopped"), False),
        (JobState(status=b"canceled"), False),
        (JobState(status=b"garbage"), False),
    ],
)
def test_a_job_may_answer_while_it_waits_or_runs(state: JobState, is_live: bool) -> None:
    assert state.is_live is is_live


def restored(**fields: bytes) -> SagaJob:
    job = SagaJob("j", connection=NOWHERE, serializer=JSONSerializer)
    job.restore({name.encode(): value for name, value in ({"data": b"[]", "status": b"queued"} | fields).items()})
    return job


def test_nothing_that_makes_rq_call_fetch_or_repeat_anything_is_believed_of_a_job() -> None:
    job = restored(
        success_callback_name=b"os.getcwd",
        failure_callback_name=b"os.getcwd",
        stopped_callback_name=b"os.getcwd",
        webhooks=b'[{"url": "http://localhost", "job_status": "finished"}]',
        retries_left=b"3",
        repeats_left=b"3",
        dependency_ids=b'["x"]',
        group_id=b"g",
    )
    assert (job.success_callback, job.failure_callback, job.stopped_callback) == (None, None, None)
    assert (job.retries_left, job.repeats_left, job.group_id, job._dependency_ids) == (None, None, None, [])
    assert getattr(job, "webhooks", []) == []


def test_the_description_of_a_job_cannot_act_on_a_terminal() -> None:
    assert restored(description=b"\x1b[31m\xe2\x80\xae").description == "\\x1b[31m\\u202e"


def test_a_job_is_one_function_and_no_other() -> None:
    assert restored(data=b'["sagastream.rq_runner.run_step",null,[],{}]').func is run_step
    for data in (b'["os.system",null,[],{}]', b'["run_step",null,[],{}]', b'["sagastream.rq_runner.run_step",1,[],{}]'):
        with pytest.raises(JobRefused):
            _ = restored(data=data).func


@pytest.mark.parametrize("service", ["os:system", ["work"], {}, None])
def test_a_service_that_is_not_this_workers_is_refused(service: Any) -> None:
    with pytest.raises(JobRefused, match="this worker does not run the service "):
        run_step(service, "1-1", again=False)


def test_a_time_limit_is_no_exception_that_a_handler_catches() -> None:
    assert _TimeLimit(1, JobTimeoutException)._exception is JobTimedOut
    assert not issubclass(JobTimedOut, Exception)
    assert _TimeLimit(1, HorseMonitorTimeoutException)._exception is HorseMonitorTimeoutException


def test_a_job_that_is_ended_while_a_command_is_packed_does_not_crash() -> None:
    """In a process of its own: else the crash would be that of the tests."""
    source = """
import signal, time
from sagastream.broker.wire import pack
from sagastream.rq_steps.worker import JobTimedOut, _TimeLimit
limit = _TimeLimit(60, JobTimedOut)
words, ended = ["X", *range(10**6, 10**6 + 2000)], 0
with limit:
    while ended < 100:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.00005)
            while True:
                pack([words])
                sum(range(5000))
                for _ in range(5000):
                    pass
        except JobTimedOut:
            ended += 1
"""
    assert subprocess.run([sys.executable, "-c", source], check=False, timeout=60).returncode == 0


def test_who_runs_no_step_on_rq_does_not_wait_for_its_import() -> None:
    ours = "sagastream.service.runner, sagastream.client.blocking"
    modules = f"{ours}, sagastream_bridge.commands.main, sagastream_bridge.local.stack"
    code = f"import sys, {modules}; sys.exit(sum(name.split('.')[0] == 'rq' for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- which queues a worker is for


@pytest.mark.parametrize(
    ("queues", "lines"),
    [
        (["till", "slow"], ["runs steps of till, of queue slow, till"]),
        (
            ["slow"],
            [
                "runs steps of till, of queue slow",
                "warning: steps of till wait in queue till too, on which this worker does not work",
            ],
        ),
        (
            ["slow", "till", "mail"],
            [
                "runs steps of till, of queue slow, till",
                "warning: works on queue mail, in which no step of till runs",
            ],
        ),
    ],
)
def test_a_worker_tells_which_queues_it_has_steps_of_and_which_are_missing(queues: list[str], lines: list[str]) -> None:
    till = Service("till")
    till.command("A", compensation=None, via="rq")(lambda params, context: None)
    till.command("B", call="jobs.b", via="rq", queue="slow")
    assert coverage(queues, [till]) == lines


# --- functions by their names


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], NamedFunction]:
    def named(function: Callable[..., Any]) -> NamedFunction:
        module = types.ModuleType("shop_jobs")
        module.function = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "shop_jobs", module)
        return NamedFunction("shop_jobs.function")

    return named


@pytest.mark.parametrize(
    ("params", "told"),
    [({"a": 1}, "1 None"), ({"a": 1, "b": 2}, "1 2"), ([1, 2], "1 2"), (1, "1 None"), ("x", "x None"), ([1], "1 None")],
)
def test_a_function_is_called_with_the_params(shop: Any, params: Any, told: str) -> None:
    assert shop(lambda a, b=None: f"{a} {b}")(params, None) == told


def test_null_is_no_argument(shop: Any) -> None:
    assert shop(lambda: "done")(None, None) == "done"


@pytest.mark.parametrize("params", [{"b": 1}, {"a": 1, "c": 1}, [1, 2, 3], None])
def test_params_that_do_not_fit_are_a_rejection_before_anything_was_done(shop: Any, params: Any) -> None:
    with pytest.raises(Reject, match=r"^malformed_params: shop_jobs\.function: "):
        shop(lambda a, b=None: 1 / 0)(params, None)


def test_a_type_error_of_the_function_itself_is_no_rejection(shop: Any) -> None:
    with pytest.raises(TypeError):
        shop(lambda a: a + "x")(1, None)


def test_an_async_function_is_run(shop: Any) -> None:
    async def charge(a: int) -> int:
        return a + 1

    assert shop(charge)([1], None) == 2


@pytest.mark.parametrize("name", ["", "charge", "shop.", ".charge", "shop:charge", "shop.jobs.charge()", "shop..x", 1])
def test_what_is_no_name_of_a_function_is_told_at_once(name: Any) -> None:
    with pytest.raises(ServiceError, match=r"is not the name of a function, like shop\.jobs\.charge"):
        NamedFunction(name)


def test_what_is_there_and_is_no_function_is_told(shop: Any) -> None:
    with pytest.raises(ServiceError, match=r"^shop_jobs\.function is not a function$"):
        shop("charge").load()


# --- declarations


def test_a_step_runs_in_the_queue_of_its_service_unless_it_names_one() -> None:
    service = Service("shop")
    service.command("A", compensation=None, via="rq")(lambda params, context: None)
    service.command("B", call="jobs.b", via="rq", queue="slow")
    service.command("C", call="jobs.c")
    service.compensation("D", call="jobs.d", via="rq")
    assert service.queues == ["shop", "slow"]
    assert service.publishes() == {"A": None}  # nobody says what undoes the others
    assert Service("none").queues == []


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        ({"via": "celery"}, "A cannot run via 'celery'; say \"rq\", or nothing"),
        ({"queue": "q"}, 'A has a queue or a timeout_s, but not via="rq"'),
        ({"timeout_s": 1}, 'A has a queue or a timeout_s, but not via="rq"'),
        ({"via": "rq", "queue": ""}, "A cannot run in the queue ''"),
        ({"via": "rq", "timeout_s": 0}, "A: timeout_s cannot be 0; give whole seconds, at least 1"),
        ({"via": "rq", "timeout_s": 1.5}, "A: timeout_s cannot be 1.5; give whole seconds, at least 1"),
        ({"call": "charge"}, "'charge' is not the name of a function"),
    ],
)
def test_what_cannot_be_declared_is_told_at_once(declared: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ServiceError, match=complaint):
        Service("shop").command("A", compensation=None, **declared)


def test_a_handler_says_what_undoes_it_or_that_nothing_does() -> None:
    with pytest.raises(ServiceError, match="A: say compensation=NAME, or None if nothing is to be undone"):
        Service("shop").command("A")  # type: ignore[call-overload]


PLACES = st.tuples(st.just("saga") | st.text("ahpx_-1", min_size=1, max_size=6), st.integers(0, 12))


@given(PLACES, PLACES, IDS, IDS)
@example(("saga", 1), ("p1", 0), "a", "a")
@example(("a", 0), ("a-b", 0), "b-c", "c")
def test_no_two_stores_and_no_two_partitions_share_a_job(
    place: tuple[str, int], other: tuple[str, int], saga_id: str, another_id: str
) -> None:
    one = job_id(command(saga_id), prefix=place[0], partition=place[1])
    two = job_id(command(another_id), prefix=other[0], partition=other[1])
    assert (one == two) == ((place, saga_id) == (other, another_id))
    assert re.fullmatch("[A-Za-z0-9_-]+", one)
    beginnings = tuple(f"{begins(place[0])}{mark}" for mark in ("-", "_p"))
    assert one.startswith(beginnings)
    if place[0] != other[0]:
        assert not two.startswith(beginnings)
