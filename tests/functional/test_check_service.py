"""`sagastream check-service`: sound services pass. The checks that are about a fault catch it, and no others do."""

import json
import os
import pty
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import pytest

from sagastream.core.steps import STANDING
from sagastream.store import layout, published
from sagastream.store.heartbeat import worker_is_alive
from sagastream_bridge.conformance import cases, command_checks, service_checks
from sagastream_bridge.conformance.effects import Effects
from sagastream_bridge.conformance.examination import Examination
from sagastream_bridge.conformance.exchange import Exchange
from sagastream_bridge.conformance.promises import Finding, Verdict
from sagastream_bridge.conformance.trial import Case
from support import raw_services as raw
from support.processes import SAGASTREAM, Commands
from support.raw_services import Raw
from support.servers import Server
from support.stores import KEYS, ONLY, divided
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "check-service.md").read_text()
PROTOCOL = DOCS / "protocol.md"

#: How the page checks the sample services: the shell command, without the backslashes that continue its lines.
RECIPE = PAGE.partition("## The sample services")[2].partition("\n## ")[0].replace("\\\n", "")
#: The sample services, and the arguments with which each is checked.
CHECKED = re.findall(r"^    (sagastream check-service .*)$", RECIPE, re.MULTILINE)
SAMPLES = {words[2]: words[1:] for words in map(shlex.split, CHECKED)}


def start(commands: Commands, server: Server, *line: str, folder: Path | None = None, **more: str) -> None:
    env = commands.environment(REDIS_URL=server.url, **more)
    process = subprocess.Popen(line, cwd=folder or commands.folder, env=env, stdout=DEVNULL, stderr=DEVNULL)
    commands.running.append(process)


def start_sample(commands: Commands, server: Server, line: str, folder: Path | None = None) -> None:
    """Start it as the page does."""
    assert f"    {line} &\n" in RECIPE
    program, *arguments = line.split()
    start(commands, server, SAGASTREAM if program == "sagastream" else program, *arguments, folder=folder)


def assert_kept(commands: Commands, server: Server, *names: str) -> None:
    """These running services keep every promise, and the checks leave nothing behind."""
    client = server.broker().client
    checks = {}
    for name in names:
        until(lambda name=name: client.exists(KEYS.published(name)), what=f"{name} is there")  # type: ignore[misc]
        more = ("--json", "--timeout", "20")
        checks[name] = commands.start(*SAMPLES[name], *more, env={"REDIS_URL": server.url})
    for name, check in checks.items():
        said, errors = check.communicate(timeout=120)
        findings = list(map(json.loads, said.splitlines()))
        assert [one["check"] for one in findings if one["verdict"] != "kept"] == ["effects"], (name, findings)
        counts = f"{len(findings) - 1} kept, 0 broken, 1 not checked"
        assert (check.returncode, errors.decode().splitlines()[0]) == (0, f"service {name}: {counts}")
        assert client.xlen(ONLY.commands(name)) == 0
        assert client.xlen(ONLY.replies(name)) == client.xlen(ONLY.quarantine_of(name)) == 0
    assert client.xlen(ONLY.quarantine) == 0


@pytest.mark.slow
def test_the_sample_services_keep_every_promise(server: Server, commands: Commands) -> None:
    for name in ("inventory", "payment", "shipping"):
        start_sample(commands, server, f"sagastream service sagastream_stubs.{name}:service")
    assert_kept(commands, server, "inventory", "payment", "shipping")


@pytest.mark.slow
def test_the_sample_in_javascript_keeps_every_promise(server: Server, commands: Commands, node_sample: Path) -> None:
    layout.check(server.broker())  # a worker makes the store; the sample waits for it
    start_sample(commands, server, "node notification.mjs", folder=node_sample)
    assert_kept(commands, server, "notification")


@pytest.mark.slow
def test_the_sample_on_rq_keeps_every_promise(server: Server, commands: Commands) -> None:
    start_sample(commands, server, "sagastream service sagastream_stubs.shipping:on_rq")
    start_sample(commands, server, "sagastream rq-worker sagastream_stubs.shipping:on_rq")
    assert_kept(commands, server, "shipping")


#: A service that needs what only its saga knows.
NEEDS_INPUT = """
from sagastream import Reject, Service
service = Service("desk")
done = {}

@service.command("Ask", compensation="Unask")
def ask(params, context):
    if done.setdefault(context.key, (context.input or {}).get("user")) is None:
        raise Reject("for whom?")
    return {"for": done[context.key]}

@service.compensation("Unask")
def unask(params, context):
    if context.undo != {"why": "tried"}:
        raise RuntimeError(f"not told why: {context.undo}")
    done[context.transaction_key] = None
"""


def test_a_service_is_checked_with_an_input_and_what_its_undo_is_told(server: Server, commands: Commands) -> None:
    (commands.folder / "desk.py").write_text(NEEDS_INPUT)
    start(commands, server, SAGASTREAM, "service", "desk:service")
    until(lambda: server.broker().client.exists(KEYS.published("desk")), what="the service is there")
    refused = commands.run("check-service", "desk", REDIS_URL=server.url)
    assert refused.returncode == 2
    assert "rejected Ask with the params null" in refused.stderr
    bad = commands.run("check-service", "desk", "--input", "[]", REDIS_URL=server.url)
    assert bad.returncode == 2
    assert "Ask: input must be an object" in bad.stderr
    told = ("--input", '{"user": "u1"}', "--undo", '{"why": "tried"}')
    done = commands.run("check-service", "desk", *told, "--json", REDIS_URL=server.url)
    findings = list(map(json.loads, done.stdout.splitlines()))
    assert [one for one in findings if one["verdict"] == "broken"] == []
    assert done.returncode == 0
    cases_file = json.dumps({"Ask": {"params": None, "input": {"user": "u1"}, "undo": {"why": "tried"}}})
    assert commands.run("check-service", "desk", "--cases", "-", REDIS_URL=server.url, given=cases_file).returncode == 0


# --- faults

CASE = {"command": "Do", "params": b'"yes"', "rejected_params": b'"no"', "compensation": "Undo"}
TWICE = {"duplicate", "twins", "next attempt", "crash after"}
MALFORMED = {check.name for check in service_checks.CHECKS.all if check.name.startswith("malformed: ")}
FIRST_MALFORMED = {"malformed: not JSON"}  # after this, a service that falls silent is asked nothing more
#: Each fault, and the checks that catch it.
FAULTS: dict[type[Raw], set[str]] = {
    raw.DoesNotDedupe: TWICE | {"rejection again"},
    raw.DoesItAgainWhereItTakesOver: {"crash after"},
    raw.SaysTheSameButDoesItAgain: TWICE | {"command after it was undone"},
    raw.SaysAnotherResult: TWICE | {"command after it was undone"},
    raw.KnowsSagasButNotSteps: {"steps apart"},
    raw.AcknowledgesFirst: {"answered first"},
    raw.DeletesNothing: {"cleared"},
    raw.AcknowledgesNothing: {"cleared"} | MALFORMED,
    raw.IsHeldUpByWhatIsMalformed: FIRST_MALFORMED,
    raw.DropsWhatIsMalformed: MALFORMED,
    raw.LeavesWhatIsMalformedPending: MALFORMED,
    raw.RefusesWhatItDoesNotKnow: {"more fields"},
    raw.IsNeverTooLate: {"late"},
    raw.SaysThatNothingRemainsWhereItIsLate: {"late"},
    raw.LeavesNoTombstone: {"command after its compensation"},
    raw.CannotUndoNothing: {"nothing to undo"},
    raw.UndoesNothing: {"effects"},
    raw.RejectsForNoReason: {"rejection"},
    raw.ForgetsRejections: {"rejection again"},
    raw.AnswersForStepOne: {"answers"},
    raw.AnswersWithTheNameAlone: {"answers"},
    raw.SaysMoreThanItShould: {"shape", "shape of a rejection"},
    raw.KeepsTheAttemptToItself: {"shape", "shape of a rejection", "shape of a compensation"},
    raw.GivesCompensationsAResult: {"shape of a compensation"},
    raw.KnowsEveryCommand: {"unknown command", "unknown compensation"},
    raw.AnswersNoStranger: {"unknown command", "unknown compensation"},
    raw.PublishesNothing: {"published"},
    raw.AnswersElsewhere: {"answers"},
    raw.HasAGroupOfAnotherName: {"group"},
    raw.WritesWhatIsNoJson: {"answers"},
}


class Counted(Effects):
    """Asks a service that runs in this process."""

    def __init__(self, service: Raw) -> None:
        super().__init__("false")
        self._service = service

    def count(self, saga_id: str) -> int:
        return self._service.count(saga_id)


@pytest.fixture
def one_server(shared_valkey: Server) -> Iterator[Server]:
    """One kind of server for all the faults, since they are about services and not about servers."""
    shared_valkey.clear()
    yield shared_valkey
    shared_valkey.close_brokers()


@contextmanager
def running(kind: type[Raw], server: Server) -> Iterator[Raw]:
    server.broker().client.flushall()
    with running_beside(kind, server) as service:
        yield service


@contextmanager
def running_beside(kind: type[Raw], server: Server) -> Iterator[Raw]:
    """Run a service on a store that has data already."""
    service = kind(server.url)
    try:
        yield service
    finally:
        service.close()


def examined(service: Raw, server: Server, *, probed: bool = True, timeout_s: float = 1.2) -> dict[str, Finding]:
    exchange = Exchange(server.broker().client, KEYS, raw.NAME, timeout_s=timeout_s)
    probe = Counted(service) if probed else None
    return {found.check: found for found in Examination(exchange, [Case(**CASE)], probe).findings()}  # type: ignore[arg-type]


def broken(findings: dict[str, Finding]) -> set[str]:
    return {name for name, found in findings.items() if found.verdict is Verdict.BROKEN}


def test_a_sound_service_of_another_make_keeps_every_promise(server: Server) -> None:
    with running(Raw, server) as service:
        findings = examined(service, server, timeout_s=20)
        assert [found for found in findings.values() if found.verdict is not Verdict.KEPT] == []
        assert service.standing == {}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_a_fault_is_caught_by_the_checks_that_are_about_it(one_server: Server, kind: type[Raw]) -> None:
    with running(kind, one_server) as service:
        findings = examined(service, one_server)
        assert {name: (findings[name].expected, findings[name].came) for name in broken(findings)}.keys() == FAULTS[
            kind
        ]


def test_two_effects_that_are_told_alike_are_found_out_by_the_effects_alone(one_server: Server) -> None:
    with running(raw.SaysTheSameButDoesItAgain, one_server) as service:
        findings = examined(service, one_server, probed=False)
    assert broken(findings) == set()
    assert {findings[name].only for name in TWICE} == {"as far as its replies show"}


def test_where_the_count_cannot_be_trusted_nothing_rests_on_it(one_server: Server) -> None:
    with running(raw.DoesItAgainAndUndoesNothing, one_server) as service:
        findings = examined(service, one_server)
    assert broken(findings) == {"effects"}
    kept = (*TWICE, "late", "command after its compensation", "command after it was undone")
    assert {findings[name].only for name in kept} == {"as far as its replies show"}


def test_what_cannot_be_told_is_said(one_server: Server) -> None:
    with running(raw.SaysNoResult, one_server) as service:
        findings = examined(service, one_server, probed=False)
        unknown = {name for name, found in findings.items() if found.verdict is Verdict.NOT_CHECKED}
        assert unknown == TWICE | {"effects", "command after it was undone"}
        assert "--effects COMMAND would show" in findings["duplicate"].came
        assert broken(examined(service, one_server)) == set()


def test_a_broken_promise_says_what_was_expected_and_what_came(one_server: Server) -> None:
    with running(raw.AnswersForAnotherSaga, one_server) as service:
        findings = examined(service, one_server)
    assert broken(findings) == {"answers"}
    found = findings["answers"]
    assert found.expected.startswith("Do_ok or Do_failed of saga check-service-")
    assert found.came.startswith('within 1.2 s only {"type": "Do_ok", "saga_id": "another", "step": 2')
    assert found.came.endswith("of a saga that this store does not hold")
    assert found.read_on == "docs/protocol.md#the-messages"


def test_after_a_service_has_fallen_silent_nothing_is_held_against_it(one_server: Server) -> None:
    with running(raw.DiesOfWhatIsMalformed, one_server) as service:
        findings = examined(service, one_server)
    assert broken(findings) == FIRST_MALFORMED
    found = findings["alive"]
    assert found.verdict is Verdict.NOT_CHECKED
    assert found.came == "the service has answered nothing since the check malformed: not JSON"


# --- what it leaves alone, and what it leaves


def test_what_others_have_in_the_store_stays_as_it_is(server: Server) -> None:
    client = server.broker().client
    with running(Raw, server) as service:
        others: Any = {
            ONLY.replies(raw.NAME): {"body": '{"type":"Do_ok","saga_id":"o-1","step":1}', "attempt": "1"},
            ONLY.quarantine_of(raw.NAME): {
                "reason": "x",
                "stream": ONLY.commands(raw.NAME),
                "entry_id": "1-1",
                "body": "x",
            },
        }
        for stream, fields in others.items():
            client.xadd(stream, fields)
        before = {stream: client.xrange(stream) for stream in others}
        assert broken(examined(service, server, timeout_s=20)) == set()
        assert {stream: client.xrange(stream) for stream in others} == before
        assert client.xlen(ONLY.commands(raw.NAME)) == 0
        assert [one["name"] for one in client.xinfo_consumers(ONLY.commands(raw.NAME), raw.NAME)] == [b"one"]


def test_what_was_held_by_a_reader_that_nobody_heard_of_is_cleared_away(one_server: Server) -> None:
    with running(raw.TakesNothingOver, one_server) as service:
        assert broken(examined(service, one_server)) == {"crash before"}
        client = one_server.broker().client
        assert client.xlen(ONLY.commands(raw.NAME)) == 0
        assert client.xpending(ONLY.commands(raw.NAME), raw.NAME)["pending"] == 0


def test_it_refuses_beside_a_worker(server: Server, commands: Commands) -> None:
    client = server.broker().client
    commands.quiet("worker", env={"REDIS_URL": server.url})
    until(lambda: worker_is_alive(client, KEYS), what="the worker is there")
    with running_beside(Raw, server):
        done = commands.run("check-service", raw.NAME, "--params", '"yes"', REDIS_URL=server.url)
        assert client.xlen(ONLY.replies(raw.NAME)) == 0
    assert (done.returncode, done.stdout) == (1, "")
    assert "a worker reads the replies of this store" in done.stderr


# --- the command line


def test_for_people_it_says_what_is_broken_on_one_line(one_server: Server, commands: Commands) -> None:
    with running(raw.SaysMoreThanItShould, one_server):
        arguments = ("--params", '"yes"', "--rejected-params", '"no"', "--timeout", "5")
        done = commands.run("check-service", raw.NAME, *arguments, REDIS_URL=one_server.url)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert "kept: answers, Do" in lines
    [shape] = [line for line in lines if line.startswith("broken: shape, Do")]
    assert "; expected no members but result, saga_id, step, type; came took_ms in {" in shape
    assert shape.endswith("; read docs/protocol.md#fields-of-a-reply")
    assert done.stderr.endswith("2 broken, 1 not checked\neffects were not counted: --effects COMMAND counts them\n")


def test_the_probe_is_a_shell_command_that_is_told_the_saga(one_server: Server, commands: Commands) -> None:
    arguments = ("check-service", raw.NAME, "--params", '"yes"', "--effects")
    with running(Raw, one_server) as service:
        for shell, says in {
            "echo $SAGA_ID": "must print one whole number; it printed 'check-service-",
            "exit 3": "--effects 'exit 3' ended with exit code 3 and said ''",
        }.items():
            done = commands.run(*arguments, shell, REDIS_URL=one_server.url)
            assert (done.returncode, done.stdout) == (2, "")
            assert says in done.stderr
            assert service.standing == {}
        done = commands.run(*arguments, "echo 7", "--timeout", "5", REDIS_URL=one_server.url)
    assert "not checked: effects, Do: because --effects printed 7 before Do was done, and after it" in done.stdout
    assert "kept: duplicate, Do: only as far as its replies show" in done.stdout
    assert done.stderr.endswith("effects were not counted: why, the check effects says\n")


def test_params_that_the_service_rejects_are_not_held_against_it(one_server: Server, commands: Commands) -> None:
    with running(Raw, one_server):
        done = commands.run("check-service", raw.NAME, "--params", '"no"', REDIS_URL=one_server.url)
    assert (done.returncode, done.stdout) == (2, "kept: published, Do\n")
    assert 'raw rejected Do with the params "no": "no"; give params with which it does that' in done.stderr


def test_a_service_that_publishes_nothing_breaks_that_promise(one_server: Server, commands: Commands) -> None:
    with running(raw.PublishesNothing, one_server):
        done = commands.run("check-service", raw.NAME, REDIS_URL=one_server.url)
    assert done.returncode == 1
    [line] = done.stdout.splitlines()
    assert line.startswith("broken: published: promise The service publishes its commands")
    assert "came none; --command NAME checks what it does not publish; read docs/protocol.md#" in line


def test_what_is_left_once_a_service_is_silent_is_one_line(one_server: Server, commands: Commands) -> None:
    with running(raw.DiesOfWhatIsMalformed, one_server):
        arguments = ("--params", '"yes"', "--rejected-params", '"no"', "--timeout", "2")
        done = commands.run("check-service", raw.NAME, *arguments, REDIS_URL=one_server.url)
    more = len(MALFORMED) - 1
    assert done.stdout.endswith(
        f"\nnot checked: malformed: no object and {more} more: because "
        "the service has answered nothing since the check malformed: not JSON\n"
    )


def test_on_a_terminal_it_asks_first(one_server: Server, commands: Commands) -> None:
    with running(Raw, one_server) as service:
        main, side = pty.openpty()
        check = commands.start(
            "check-service", raw.NAME, "--params", '"yes"', env={"REDIS_URL": one_server.url}, stdin=side, stderr=side
        )
        os.close(side)
        os.write(main, b"n\n")
        assert check.wait(60) == 1
        said = os.read(main, 65536).decode()
        os.close(main)
        assert service.standing == {}
    assert "does them for real and undoes them if it can" in " ".join(said.split())
    assert said.endswith("Error: nothing was sent\r\n")
    assert max(map(len, said.splitlines())) < 80


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--params", "{"], "--params: not JSON"),
        (["--cases", "-", "--params", "1"], "--cases says it all"),
        (["--cases", "-"], "the cases must be a JSON object"),
        (["--timeout", "nan"], "must be a number"),
        (["--timeout", "0"], "--timeout"),
    ],
)
def test_wrong_usage(one_server: Server, commands: Commands, options: list[str], says: str) -> None:
    with running(Raw, one_server):
        done = commands.run("check-service", raw.NAME, *options, given="[]", REDIS_URL=one_server.url)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_service_that_is_not_there(one_server: Server, commands: Commands) -> None:
    with running(Raw, one_server):
        done = commands.run("check-service", "row", "--timeout", "0.2", REDIS_URL=one_server.url)
    assert done.returncode == 1
    assert "no service row is at" in done.stderr
    assert done.stderr.endswith("start it there; there are: raw\n")


# --- docs/check-service.md


def test_the_example_of_the_page_comes_out_as_it_stands_there(commands: Commands) -> None:
    service = re.search(r"```python\n# till\.py\n(.*?)```", PAGE, re.DOTALL)
    shell = re.search(r"\n((?:    .*\n)*    sagastream service till(?:.*\n)(?:    .*\n)*)", PAGE)
    assert service is not None
    assert shell is not None
    (commands.folder / "till.py").write_text(service[1])
    script = shell[1].replace("sagastream ", f"{SAGASTREAM} ") + "\nwait $!\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=commands.folder, env=commands.environment(), capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert [line for line in done.stdout.splitlines() if not line.startswith("kept: ")] == []
    assert re.search(r"service till: \d+ kept, 0 broken, 0 not checked\n", done.stderr)
    assert list((commands.folder / "charges").iterdir()) == []


def test_the_cases_of_the_page_can_be_read() -> None:
    text = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert text is not None
    first, second = cases.read(text[1].encode(), {"ChargeCard": "RefundCard", "BlockCard": None})
    assert first == Case(
        command="ChargeCard", params=b'{"amount":5}', rejected_params=b'{"amount":500}', compensation="RefundCard"
    )
    assert second == Case(command="BlockCard", params=b'{"card":"c1"}', compensation="UnblockCard")


def test_the_page_names_every_check_with_its_promise() -> None:
    checks = (*command_checks.CHECKS.all, *service_checks.CHECKS.all)
    assert re.findall(r"^\| (.+) \| (.+[.]) \|$", PAGE.partition("## The checks")[2], re.MULTILINE) == [
        (check.name, check.promise) for check in checks
    ]


def test_every_check_names_a_section_of_the_page_of_the_protocol() -> None:
    titles = re.findall(r"^#+ (.+)$", PROTOCOL.read_text(), re.MULTILINE)
    sections = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in titles}
    checks = (*command_checks.CHECKS.all, *service_checks.CHECKS.all)
    assert {check.name: check.section for check in checks if check.section not in sections} == {}


@pytest.mark.slow
def test_a_service_is_checked_in_every_partition(server: Server, commands: Commands) -> None:
    keys = divided(server.broker())
    commands.quiet("service", "sagastream_stubs.payment:service", env={"REDIS_URL": server.url})
    done = commands.run(*SAMPLES["payment"], "--timeout", "20", REDIS_URL=server.url)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stderr
    client = server.broker().client
    for partition in keys.partitions:
        assert client.exists(partition.commands("payment"))
        assert client.xlen(partition.commands("payment")) == client.xlen(partition.replies("payment")) == 0
        # The records say that commands of this partition were done.
        assert list(client.scan_iter(partition.done("payment", 0).rpartition(":")[0] + ":*"))


def test_a_service_that_reads_only_one_partition_is_found(server: Server) -> None:
    divided(server.broker())
    service = Raw(server.url)
    try:
        exchange = Exchange(server.broker().client, layout.look(server.broker()), raw.NAME, timeout_s=1.2)
        findings = list(Examination(exchange, [Case(**CASE)], None).findings())  # type: ignore[arg-type]
        assert any(found.verdict == "broken" for found in findings)
    finally:
        service.close()


def test_the_question_which_effects_stand_is_no_command_to_try(server: Server) -> None:
    broker = server.broker()
    published.publish(broker.client, KEYS, "till", {"ChargeCard": "RefundCard", STANDING: None})
    assert cases.published_by(broker, "till", 1.0, print) == {"ChargeCard": "RefundCard"}
