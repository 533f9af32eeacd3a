"""An undo that a process owes is never only in its memory, on real servers and with real processes.

The first attempt of a step hangs in the process A until nobody waits for it any more. B rejects the second attempt, so
the step has failed; B also takes the first attempt over, finds nothing to undo, and answers it. Now nothing is pending.
Then A's handler has its effect after all, which must not stand, whatever happens to A.
"""

import json
import signal
import subprocess
import textwrap
from pathlib import Path
from typing import Any

import pytest
import redis

from sagastream.core.service_rules import MAX_UNDOS
from sagastream.store.quarantine import Quarantine
from support.processes import Commands, tell_to_end
from support.servers import OwnServer, Server
from support.stores import KEYS, ONLY
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

KEY = "s1/1/transaction"
REJECTED = ("Do_failed", "no")

#: Its data are files in the current folder: so it needs no broker.
SERVICE = textwrap.dedent("""
    import json
    import os
    import time
    from pathlib import Path

    from sagastream import Reject, Service

    service = Service("work", lease_ms=500)
    effect = Path("effect")

    def told(name, line):
        with open(name, "a") as file:
            print(line, file=file)

    @service.command("Do", compensation="Undo")
    def do(params, context):
        told("began", f"{context.attempt} {os.getpid()}")
        if context.attempt == 2:
            raise Reject("no")
        while not Path("go on").exists():
            time.sleep(0.01)
        effect.write_text(context.key)
        if Path("do raises").exists():
            raise RuntimeError("after the effect")
        return {"booking": 7}

    @service.command("Choose", compensation="Undo")
    def choose(params, context):
        me = os.getpid()
        told("began", f"{context.attempt} {me}")
        while not Path(f"do {me}").exists():
            if Path(f"reject {me}").exists():
                raise Reject("no")
            time.sleep(0.01)
        effect.write_text(context.key)
        time.sleep(3600)

    @service.compensation("Undo")
    def undo(params, context):
        told("undone" if effect.exists() else "found nothing", json.dumps([context.result, context.transaction_key]))
        while Path("undo hangs").exists():
            time.sleep(0.01)
        if Path("undo raises").exists() and effect.exists():
            told("raised", context.key)
            raise RuntimeError("the bank is closed")
        effect.unlink(missing_ok=True)
""")


class Play:
    """The broker, and the processes of the service."""

    def __init__(self, server: Server, commands: Commands) -> None:
        self.server = server
        self._commands = commands
        self.folder = commands.folder
        self.redis: redis.Redis = server.broker().client
        (self.folder / "owing.py").write_text(SERVICE)

    def process(self) -> "subprocess.Popen[bytes]":
        return self._commands.start("service", "owing:service", env={"REDIS_URL": self.server.url})

    def flag(self, name: str, is_set: bool = True) -> None:
        path = self.folder / name
        path.touch() if is_set else path.unlink()

    def lines(self, name: str) -> list[str]:
        path: Path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    @property
    def stands(self) -> bool:
        """Whether the effect does."""
        return (self.folder / "effect").exists()

    def deliver(self, name: str = "Do", *, attempt: int = 1, **more: int) -> None:
        body = {"type": name, "saga_id": "s1", "step": 1, "params": {"seats": 2}}
        entry: dict[Any, Any] = {"body": json.dumps(body), "attempt": attempt, "begun_ms": 1, "later": "is kept"}
        self.redis.xadd(ONLY.commands("work"), entry | more)

    def replies(self) -> list[tuple[str, str]]:
        entries: Any = self.redis.xrange(ONLY.replies("work"))
        bodies = [json.loads(fields[b"body"]) for _, fields in entries]
        return [(body["type"], body["error"]) for body in bodies]

    def is_clear(self) -> bool:
        """Whether no command is left: none to be read, none held."""
        return self.redis.xlen(ONLY.commands("work")) == 0

    def consumers(self) -> int:
        try:
            found: Any = self.redis.xinfo_consumers(ONLY.commands("work"), "work")
        except redis.ResponseError:
            return 0
        return len(found)

    def owing(self) -> "subprocess.Popen[bytes]":
        """A, whose handler runs, and whose step was refused; nothing is pending."""
        processes = [self.process(), self.process()]
        until(lambda: self.consumers() == 2, what="both read")
        seconds, micros = self.redis.time()
        now_ms = seconds * 1000 + micros // 1000
        self.deliver(attempt=1, not_after_ms=now_ms + 2000)
        until(lambda: self.lines("began"), what="A begins")
        self.deliver(attempt=2, not_after_ms=now_ms + 3_600_000)
        until(lambda: self.is_clear() and len(self.replies()) == 2, what="B answers both")
        assert self.replies() == [REJECTED, REJECTED]
        assert len(self.lines("found nothing")) == 1
        [one, another] = self.lines("began")
        assert [one.split()[0], another.split()[0]] == ["1", "2"]
        [owing] = [process for process in processes if str(process.pid) == one.split()[1]]
        [other] = [process for process in processes if process is not owing]
        other.send_signal(signal.SIGTERM)
        assert other.wait(60) == 0
        assert not self.stands
        return owing


@pytest.fixture
def play(server: Server, commands: Commands) -> Play:
    return Play(server, commands)


def all_is_undone(play: Play) -> None:
    until(lambda: play.lines("undone"), what="the undo runs")
    until(lambda: not play.stands and play.is_clear(), what="the effect is undone")
    assert set(play.replies()) == {REJECTED}
    assert not list(Quarantine(play.redis, KEYS).newest_first())


def test_a_process_that_goes_on_undoes_what_it_owes_and_tells_the_result(play: Play) -> None:
    play.owing()
    play.flag("go on")
    all_is_undone(play)
    assert play.lines("undone") == [json.dumps([{"booking": 7}, KEY])]


@pytest.mark.parametrize("outcome", ["returns", "raises"])
def test_a_process_that_is_told_to_end_leaves_what_it_owes_to_others(play: Play, outcome: str) -> None:
    owing = play.owing()
    if outcome == "raises":
        play.flag("do raises")
    tell_to_end(owing)
    play.flag("go on")
    assert owing.wait(60) == 0
    assert play.stands
    entries: Any = play.redis.xrange(ONLY.commands("work"))
    [(_, fields)] = entries
    assert fields[b"replayed"] == b"1"
    assert fields[b"later"] == b"is kept"
    assert fields.get(b"result") == (b'{"booking":7}' if outcome == "returns" else None)
    play.process()
    all_is_undone(play)


def test_an_undo_that_fails_comes_again_until_a_person_has_to_decide(play: Play) -> None:
    play.flag("undo raises")
    play.owing()
    play.flag("go on")
    until(lambda: len(play.lines("raised")) >= 6, what="it is tried again after three tries")
    assert play.stands
    assert not play.is_clear()
    play.flag("undo raises", is_set=False)
    all_is_undone(play)


def test_an_undo_that_never_succeeds_is_left_to_a_person(play: Play) -> None:
    play.flag("undo raises")
    play.owing()
    play.flag("go on")
    [message] = until(lambda: list(Quarantine(play.redis, KEYS).newest_first()), what="it is set aside")
    assert play.is_clear()
    assert f"could not be undone {MAX_UNDOS} times" in message.reason
    play.flag("undo raises", is_set=False)
    Quarantine(play.redis, KEYS).replay(message.id)
    until(lambda: not play.stands and play.is_clear(), what="the effect is undone")


def test_a_process_that_is_killed_in_the_undo_leaves_it_to_others(play: Play) -> None:
    owing = play.owing()
    play.flag("undo hangs")
    play.flag("go on")
    until(lambda: play.lines("undone"), what="the undo runs")
    owing.kill()
    play.flag("undo hangs", is_set=False)
    play.process()
    all_is_undone(play)


def test_an_undo_that_is_begun_and_taken_over_does_no_harm(play: Play) -> None:
    owing = play.owing()
    play.flag("undo hangs")
    play.flag("go on")
    until(lambda: play.lines("undone"), what="the undo runs")
    owing.send_signal(signal.SIGSTOP)
    play.process()
    until(lambda: len(play.lines("undone")) == 2, what="another process takes the undo over")
    owing.send_signal(signal.SIGCONT)
    play.flag("undo hangs", is_set=False)
    all_is_undone(play)


def test_an_answer_does_not_acknowledge_what_another_process_has_begun_and_died_of(play: Play) -> None:
    rejects = play.process()
    until(lambda: play.consumers() == 1, what="it reads")
    play.deliver("Choose")
    until(lambda: len(play.lines("began")) == 1, what="it begins")
    rejects.send_signal(signal.SIGSTOP)
    does = play.process()
    until(lambda: len(play.lines("began")) == 2, what="another one takes the command over")
    play.flag(f"do {does.pid}")
    until(lambda: play.stands, what="the effect is there")
    does.kill()
    play.flag(f"reject {rejects.pid}")
    rejects.send_signal(signal.SIGCONT)
    until(lambda: len(play.replies()) == 1, what="the first one answers")
    until(lambda: not play.stands and play.is_clear(), what="the effect is undone")
    assert set(play.replies()) == {("Choose_failed", "no")}


@pytest.mark.own_server
@pytest.mark.parametrize("end", [True, False], ids=["told to end", "going on"])
def test_what_a_process_owes_outlives_an_outage_of_the_broker(server: OwnServer, commands: Commands, end: bool) -> None:
    play = Play(server, commands)
    owing = play.owing()
    server.kill()
    play.flag("go on")
    until(lambda: play.stands, what="the effect is there")
    if end:
        tell_to_end(owing)
        with pytest.raises(subprocess.TimeoutExpired):
            owing.wait(1)
    server.start()
    if end:
        assert owing.wait(60) == 0
        play.process()
    all_is_undone(play)


@pytest.mark.own_server
def test_what_a_process_owes_is_undone_in_a_store_that_is_full(server: OwnServer, commands: Commands) -> None:
    play = Play(server, commands)
    play.owing()
    play.redis.config_set("maxmemory", 1)
    play.flag("go on")
    all_is_undone(play)
