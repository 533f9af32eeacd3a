"""`sagastream check-service`: sound services pass; a fault is caught by the checks that are about it, and no others."""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import raw_services as raw
from processes import SAGASTREAM, Commands
from raw_services import Raw
from sagastream import keys
from sagastream_bridge.conformance.effects import Effects
from sagastream_bridge.conformance.examination import Examination
from sagastream_bridge.conformance.exchange import Exchange
from sagastream_bridge.conformance.promises import Finding, Verdict
from sagastream_bridge.conformance.trial import Case
from servers import Server, start_valkey
from waiting import until

#: The services that must keep every promise: how each is started, and what it is tried with.
SOUND: dict[str, tuple[list[str], dict[str, Any]]] = {
    "inventory": (
        [SAGASTREAM, "service", "sagastream_stubs.inventory:service"],
        {
            "ReserveInventory": {
                "params": {"sku": "abc123", "quantity": 1},
                "rejected_params": {"sku": "sold_out", "quantity": 1},
            }
        },
    ),
    "payment": (
        [SAGASTREAM, "service", "sagastream_stubs.payment:service"],
        {
            "ChargePayment": {
                "params": {"user_id": "u1", "amount": 5},
                "rejected_params": {"user_id": "u42", "amount": 500},
            }
        },
    ),
    "shipping": (
        [SAGASTREAM, "service", "sagastream_stubs.shipping:service"],
        {"CreateShipment": {"params": {"order_id": "o1"}, "rejected_params": {}}},
    ),
}


def test_the_sample_services_keep_every_promise(server: Server, commands: Commands) -> None:
    env = commands.environment(REDIS_URL=server.url)
    for start, _ in SOUND.values():
        commands.running.append(subprocess.Popen(start, cwd=commands.folder, env=env, stderr=subprocess.DEVNULL))
    client = server.broker().client
    for name in SOUND:
        until(lambda name=name: client.exists(keys.published(name)), what=f"{name} is there")  # type: ignore[misc]
    checks = {}
    for name, (_, cases) in SOUND.items():
        (commands.folder / f"{name}.json").write_text(json.dumps(cases))
        arguments = ("check-service", name, "--cases", f"{name}.json", "--json", "--timeout", "20")
        checks[name] = commands.start(*arguments, env={"REDIS_URL": server.url})
    for name, check in checks.items():
        said, errors = check.communicate(timeout=120)
        findings = list(map(json.loads, said.splitlines()))
        assert [one["check"] for one in findings if one["verdict"] != "kept"] == ["effects"], name
        counts = f"{len(findings) - 1} kept, 0 broken, 1 not checked"
        assert (check.returncode, errors.decode()) == (0, f"service {name}: {counts}\n")
    for name in SOUND:
        assert client.xlen(keys.commands(name)) == 0
    assert client.xlen(keys.REPLIES) == client.xlen(keys.QUARANTINE) == 0


# --- faults

CASE = {"command": "Do", "params": b'"yes"', "rejected_params": b'"no"', "compensation": "Undo"}
TWICE = {"duplicate", "twins", "next attempt", "crash after"}
MALFORMED = {
    f"malformed: {what}"
    for what in (
        "not JSON",
        "no object",
        "members missing",
        "wrong types",
        "bytes",
        "no body",
        "deep",
        "huge",
        "attempt",
    )
}
#: Each fault, and the checks that catch it.
FAULTS: dict[type[Raw], set[str]] = {
    raw.DoesNotDedupe: TWICE | {"rejection again"},
    raw.DoesItAgainWhereItTakesOver: {"crash after"},
    raw.SaysTheSameButDoesItAgain: TWICE | {"command after it was undone"},
    raw.SaysAnotherResult: TWICE | {"command after it was undone"},
    raw.KnowsSagasButNotSteps: {"steps apart"},
    raw.TakesNothingOver: {"crash before"},
    raw.AcknowledgesFirst: {"answered first"},
    raw.DeletesNothing: {"cleared"},
    raw.AcknowledgesNothing: {"cleared"} | MALFORMED,
    raw.DiesOfWhatIsMalformed: MALFORMED,
    raw.IsHeldUpByWhatIsMalformed: MALFORMED,
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
    raw.AnswersForAnotherSaga: {"answers"},
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
    """Asks a service of this process."""

    def __init__(self, service: Raw) -> None:
        super().__init__("false")
        self._service = service

    def count(self, saga_id: str) -> int:
        return self._service.count(saga_id)


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all the faults: they are about services, not about servers."""
    started = start_valkey(tmp_path_factory.mktemp("faults"))
    yield started
    started.stop()


@contextmanager
def running(kind: type[Raw], server: Server) -> Iterator[Raw]:
    server.broker().client.flushall()
    service = kind(server.url)
    try:
        yield service
    finally:
        service.close()


def examined(service: Raw, server: Server, *, probed: bool = True, timeout_s: float = 1.5) -> dict[str, Finding]:
    exchange = Exchange(server.broker().client, raw.NAME, timeout_s=timeout_s)
    probe = Counted(service) if probed else None
    return {found.check: found for found in Examination(exchange, [Case(**CASE)], probe).findings()}  # type: ignore[arg-type]


def broken(findings: dict[str, Finding]) -> set[str]:
    return {name for name, found in findings.items() if found.verdict is Verdict.BROKEN}


def test_a_sound_service_of_another_make_keeps_every_promise(server: Server) -> None:
    with running(Raw, server) as service:
        findings = examined(service, server, timeout_s=20)
        assert [found for found in findings.values() if found.verdict is not Verdict.KEPT] == []
        assert service.standing == {}


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_a_fault_is_caught_by_the_checks_that_are_about_it(one_server: Server, kind: type[Raw]) -> None:
    with running(kind, one_server) as service:
        findings = examined(service, one_server)
        assert {name: (findings[name].expected, findings[name].came) for name in broken(findings)}.keys() == FAULTS[
            kind
        ]
