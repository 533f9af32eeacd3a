"""Sealed values between real processes: command line, bridge, RQ workers, killed services; and the test kit."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from sagastream import Context, Service
from sagastream.client.blocking import SagaClient
from sagastream.codecs.keyring import Keyring, line_of
from sagastream.core.messages import Code
from sagastream.core.saga import SagaStatus
from sagastream.errors import ScenarioError
from sagastream.testing import Sagas
from support.processes import Commands, Talk
from support.scenes import do
from support.servers import Server
from support.stored import dump
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

SECRET: Final = "Ada Lovelace, 12 Saint James Square"
OLD, NEW = Keyring.new_key(), Keyring.new_key()

SHOP: Final = """
import json, os, pathlib, time
from sagastream import Reject, Service

service = Service("work", lease_ms=500)
log = pathlib.Path(os.environ["SHOP_LOG"])

def note(*what):
    with log.open("a") as file:
        file.write(json.dumps([*what, os.getpid()]) + "\\n")

@service.command("Do", compensation="Undo" VIA)
def do(params, context):
    note("do", context.key, params)
    if params == "hang" and not (hung := log.with_name("hung")).exists():
        hung.touch()
        time.sleep(3600)
    if params in ("fail", "hang"):
        raise Reject("as asked")
    return {"kept": params}

@service.compensation("Undo" VIA)
def undo(params, context):
    note("undo", context.transaction_key, params, context.result)
"""


class Stage:
    """Processes on one server, and what they have done."""

    def __init__(self, server: Server, commands: Commands, via: str = "") -> None:
        self.server = server
        self.commands = commands
        self.log = commands.folder / "log"
        (commands.folder / "shop.py").write_text(SHOP.replace(" VIA", f', via="{via}"' if via else ""))

    def env(self, keys: Path | None = None) -> dict[str, str]:
        env = {"REDIS_URL": self.server.url, "SHOP_LOG": str(self.log), "PYTHONPATH": str(self.commands.folder)}
        return env if keys is None else env | {"SAGASTREAM_KEYS": str(keys)}

    def keys(self, **keys: bytes) -> Path:
        file = self.commands.folder / "-".join(keys)
        file.write_text("".join(f"{line_of(name, key)}\n" for name, key in keys.items()))
        file.chmod(0o600)
        return file

    def start(self, *line: str, keys: Path | None = None) -> Any:
        return self.commands.start(*line, env=self.env(keys), stdout=-3, stderr=-3)

    def run(self, *line: str, keys: Path | None = None, given: str = "") -> Any:
        return self.commands.run(*line, given=given, **self.env(keys))

    def noted(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []

    def body(self, saga_id: str, *steps: Any) -> str:
        return json.dumps({"saga_id": saga_id, "steps": list(steps)})


@pytest.fixture
def stage(server: Server, commands: Commands) -> Iterator[Stage]:
    made = Stage(server, commands)
    yield made
    assert SECRET not in repr(dump(server.broker().client))


def test_the_command_line_seals_and_opens_with_the_keys_of_a_file(stage: Stage) -> None:
    keys, others = stage.keys(old=OLD), stage.keys(new=NEW)
    stage.start("worker")
    stage.start("service", "shop:service", keys=keys)
    begun = stage.run("begin", "-", "--wait", "--timeout", "60", keys=keys, given=stage.body("a", do({"name": SECRET})))
    assert begun.stdout == "a COMPLETED\n", begun
    shown = stage.run("show", "a", keys=keys).stdout
    assert f'params {{"name": "{SECRET}"}}' in shown
    assert f'result {{"kept": {{"name": "{SECRET}"}}}}' in shown
    assert json.loads(stage.run("show", "a", "--json", keys=keys).stdout)["steps"][0]["result"] == {
        "kept": {"name": SECRET}
    }
    for given, why in ((None, "this process has no keys"), (others, "which this process does not have; it has new")):
        shown = stage.run("show", "a", keys=given).stdout
        assert "params sealed with key old" in shown
        assert "result sealed with key old" in shown
        assert shown.count("note") == 1
        assert "cannot open params of step 1, result of step 1: they are sealed with key old" in shown
        assert why in shown
        assert SECRET not in shown
        assert stage.run("list", keys=given).returncode == 0
    keys.chmod(0o644)
    refused = stage.run("show", "a", keys=keys)
    assert refused.returncode == 2
    assert "chmod 600" in refused.stderr


def test_a_quarantined_message_is_shown_opened(stage: Stage) -> None:
    keys = stage.keys(old=OLD)
    stage.start("worker")
    stage.start("service", "shop:service", keys=keys)
    stage.run("begin", "-", "--wait", keys=keys, given=stage.body("a", do(SECRET)))
    client: Any = stage.server.broker().client
    with SagaClient(stage.server.broker()) as reading:
        state = reading.get("a")
    assert state is not None
    assert state.steps[0].result is not None
    stray = {"type": "Nothing_ok", "saga_id": "a", "step": 1, "result": json.loads(state.steps[0].result)}
    client.xadd("saga:{0}:replies:work", {"body": json.dumps(stray)})
    until(lambda: client.xlen("saga:{0}:quarantine"), what="it is set aside")
    ((entry_id, _),) = client.xrange("saga:{0}:quarantine")
    shown = json.loads(stage.run("quarantine", "show", entry_id.decode(), keys=keys).stdout)
    assert json.loads(shown["body"])["result"] == {"kept": SECRET}
    shown = json.loads(stage.run("quarantine", "show", entry_id.decode()).stdout)
    assert json.loads(shown["body"]) == stray


def test_a_quarantined_begin_is_shown_opened(stage: Stage) -> None:
    keys = stage.keys(old=OLD)
    for params in (SECRET, {"name": SECRET}):  # the second one is another saga, which the worker notices
        stage.run("begin", "-", keys=keys, given=stage.body("a", do(1), do(params)))
    stage.start("worker")
    client: Any = stage.server.broker().client
    until(lambda: client.xlen("saga:{0}:quarantine"), what="the second one is set aside")
    ((entry_id, _),) = client.xrange("saga:{0}:quarantine")
    shown = json.loads(stage.run("quarantine", "show", entry_id.decode(), keys=keys).stdout)
    assert [step["params"] for step in json.loads(shown["body"])["steps"]] == [1, {"name": SECRET}]
    shown = json.loads(stage.run("quarantine", "show", entry_id.decode()).stdout)
    assert [list(step["params"]) for step in json.loads(shown["body"])["steps"]] == [["$sealed"], ["$sealed"]]


@pytest.mark.slow
def test_another_process_does_and_undoes_what_a_killed_one_began(stage: Stage) -> None:
    keys, rotated = stage.keys(old=OLD), stage.keys(new=NEW, old=OLD)
    stage.start("worker")
    first = stage.start("service", "shop:service", keys=keys)
    stage.run("begin", "-", keys=keys, given=stage.body("a", do({"name": SECRET}), do("hang", timeout_ms=60_000)))
    until(lambda: [one for one in stage.noted() if one[2] == "hang"], what="the second step hangs")
    first.send_signal(signal.SIGKILL)
    first.wait()
    unable = stage.start("service", "shop:service")
    stage.start("service", "shop:service", keys=rotated)
    with SagaClient(stage.server.broker()) as client:
        assert client.wait("a", 60).status is SagaStatus.ABORTED
    undone = [one for one in stage.noted() if one[0] == "undo" and one[1] == "a/1/transaction"]
    assert [one[2:4] for one in undone] == [[{"name": SECRET}, {"kept": {"name": SECRET}}]]
    assert unable.pid not in {one[-1] for one in stage.noted()}


@pytest.mark.slow
def test_steps_on_rq_are_opened_by_the_rq_worker_alone(server: Server, commands: Commands) -> None:
    stage = Stage(server, commands, via="rq")
    keys = stage.keys(old=OLD)
    stage.start("worker")
    stage.start("service", "shop:service")  # it has no keys, and needs none
    unable = stage.start("rq-worker", "shop:service")
    given = stage.body("a", do({"name": SECRET}, timeout_ms=120_000), do("fail"))
    stage.run("begin", "-", keys=keys, given=given)
    client: Any = server.broker().client

    def left() -> bool:
        return any(b"meta" in client.hkeys(name) for name in client.keys("*rq:job:*"))

    until(left, what="the job is left")
    assert stage.noted() == []
    why = "cannot open Do: it is sealed with key old, and this process has no keys; it waits for a worker that can"
    until(lambda: why in " ".join(stage.run("show", "a").stdout.split()), what="show says which key is missing")
    until(lambda: why in stage.run("doctor").stdout, what="the doctor says so, too")
    unable.terminate()
    unable.wait(30)
    stage.start("rq-worker", "shop:service", keys=keys)
    with SagaClient(server.broker()) as reading:
        assert reading.wait("a", 90).status is SagaStatus.ABORTED
    assert [one[:-1] for one in stage.noted() if one[2] != "fail"] == [
        ["do", "a/1/transaction", {"name": SECRET}],
        ["undo", "a/1/transaction", {"name": SECRET}, {"kept": {"name": SECRET}}],
    ]
    assert SECRET not in repr(dump(client))


def test_the_bridge_seals_what_comes_as_lines_and_opens_what_goes_out(stage: Stage) -> None:
    keys = stage.keys(old=OLD)
    stage.start("worker")
    bridge = stage.commands.start("bridge", "--serve", "work", "--trace", env=stage.env(keys))
    talk = Talk(bridge)
    talk.say("c1", {"type": "saga_begin", "msg_id": 1, "saga_id": "a", "steps": [do({"name": SECRET})]})
    src, dest, body = talk.hear()
    while body["type"] != "Do":
        src, dest, body = talk.hear()
    assert (src, dest, body["params"]) == ("orchestrator", "work", {"name": SECRET})
    talk.say("work", {"type": "Do_ok", "saga_id": "a", "step": 1, "result": {"kept": SECRET}})
    talk.say("c1", {"type": "saga_await", "msg_id": 2, "saga_id": "a"})
    while body["type"] != "saga_await_ok":
        src, dest, body = talk.hear()
        assert "$sealed" not in json.dumps(body)
    assert body["state"]["steps"][0]["result"] == {"kept": SECRET}


def test_the_bridge_without_keys_refuses_what_looks_sealed_unless_it_is_told_otherwise(stage: Stage) -> None:
    stage.start("worker")
    strange = {"$sealed": {"key": "nokey", "from": "0/input/x", "data": "AAAA"}}
    begin = {"type": "saga_begin", "msg_id": 1, "saga_id": "a", "input": {"x": [strange]}, "steps": [do({"n": 1})]}
    talk = Talk(stage.commands.start("bridge", env=stage.env(None)))
    talk.say("c1", begin)
    _, _, body = talk.hear()
    assert (body["type"], body["code"]) == ("error", Code.MALFORMED)
    assert body["text"].startswith("input/x/0: it looks like a value that was sealed with key nokey")
    talk = Talk(stage.commands.start("bridge", "--accept-sealed", "--serve", "work", env=stage.env(None)))
    talk.say("c1", begin)
    talk.say("c1", {"type": "saga_status", "msg_id": 2, "saga_id": "a"})
    _, _, body = talk.hear()
    assert (body["type"], body["in_reply_to"]) == ("saga_status_ok", 2)


def test_a_service_that_opens_values_keeps_its_promises(stage: Stage) -> None:
    keys = stage.keys(old=OLD)
    stage.start("service", "shop:service", keys=keys)
    line = ("check-service", "work", "--command", "Do", "--params", json.dumps({"name": SECRET}))
    checked = stage.run(*line, "--rejected-params", '"fail"', "--yes", keys=keys)
    assert checked.returncode == 0, checked
    assert {one[2]["name"] for one in stage.noted() if isinstance(one[2], dict)} == {SECRET}


@pytest.mark.parametrize(
    "line",
    [("begin", "-"), ("service", "shop:service"), ("up", "--service", "shop:service"), ("up",), ("bridge",)],
    ids=" ".join,
)
def test_a_file_of_keys_that_cannot_be_used_is_told_on_one_line(stage: Stage, line: tuple[str, ...]) -> None:
    keys = stage.commands.folder / "none"
    ended = stage.run(*line, keys=keys, given=stage.body("a", do(1)))
    told = f"Error: SAGASTREAM_KEYS: cannot read the keys in {keys}: there is no such file\n"
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", told)


def test_the_doctor_examines_a_store_also_if_the_keys_cannot_be_used(stage: Stage) -> None:
    stage.run("init")
    ended = stage.run("doctor", keys=stage.commands.folder / "none")
    assert ended.returncode == 1
    assert "problem   values        SAGASTREAM_KEYS: cannot read the keys" in ended.stdout
    assert "workers" in ended.stdout


def lines_up_to(pipe: Any, part: str) -> str:
    """What a process writes, up to the line that has this in it."""
    said = [""]
    while part not in said[-1]:
        said.append(pipe.readline().decode())
        assert said[-1], said
    return "".join(said)


def test_a_misspelt_variable_is_told_by_every_command_once(stage: Stage) -> None:
    told = "nothing reads the environment variable SAGASTREAM_KEY; is it a misspelling of SAGASTREAM_KEYS?"
    env = stage.env() | {"SAGASTREAM_KEY": "keys"}
    for line in (("init",), ("list",), ("new-key", "a"), ("begin", "-")):
        ended = stage.commands.run(*line, given=stage.body("a", do(1)), **env)
        assert ended.returncode == 0
        assert ended.stderr.startswith(f"sagastream: {told}\n")
        assert ended.stderr.count(told) == 1
    up: Any = stage.commands.start("up", "--service", "shop:service", env=env, stdout=-1, stderr=-2)
    said = lines_up_to(up.stdout, "service work ")  # a child process, which has said all of its environment by then
    assert said.count(told) == 1


def test_a_process_says_at_its_start_with_which_key_it_seals(stage: Stage) -> None:
    keys = stage.keys(new=NEW, old=OLD)
    for given, says in ((keys, "started; seals with key new"), (None, "started")):
        service: Any = stage.commands.start("service", "shop:service", env=stage.env(given), stdout=-3, stderr=-1)
        assert service.stderr.readline().decode().rstrip().endswith(f": {says}")
    bridge = stage.run("bridge", keys=keys)
    assert bridge.stderr == "sagastream bridge: seals with key new\n"
    up: Any = stage.commands.start("up", "--service", "shop:service", env=stage.env(keys), stdout=-1, stderr=-3)
    assert lines_up_to(up.stdout, "values ").endswith("\nvalues   seals with key new\n")


def test_an_rq_worker_says_with_which_key_it_seals(server: Server, commands: Commands) -> None:
    stage = Stage(server, commands, via="rq")
    keys = stage.keys(old=OLD)
    worker: Any = stage.commands.start("rq-worker", "shop:service", env=stage.env(keys), stdout=-3, stderr=-1)
    lines_up_to(worker.stderr, "seals with key old what steps of work return")


def test_an_rq_worker_ends_at_once_if_its_keys_cannot_be_used(server: Server, commands: Commands) -> None:
    stage = Stage(server, commands, via="rq")
    ended = stage.run("rq-worker", "shop:service", keys=commands.folder / "none")
    assert ended.returncode != 0
    assert "SAGASTREAM_KEYS: cannot read the keys" in ended.stderr


def test_a_new_key_is_a_line_of_such_a_file(stage: Stage) -> None:
    line = stage.run("new-key", "2026-11").stdout
    file = stage.commands.folder / "keys"
    file.write_text(line)
    file.chmod(0o600)
    assert Keyring.from_file(file).key == "2026-11"
    assert stage.run("new-key", "no id").returncode == 2


# --- the test kit


def _work(codec: Keyring | None) -> Service:
    service = Service("work", codec=codec)

    @service.command("Do", compensation="Undo")
    def do(params: Any, context: Context) -> Any:
        return {"kept": params}

    @service.compensation("Undo")
    def undo(params: Any, context: Context) -> None:
        assert context.result is None or context.result == {"kept": params}

    return service


@pytest.mark.parametrize("of", ["the test", "the service"])
def test_the_test_kit_seals_and_opens(of: str) -> None:
    ring = Keyring({"old": OLD})
    sagas = Sagas(_work(ring)) if of == "the service" else Sagas(_work(None), codec=ring)
    with sagas:
        done = sagas.run([do({"name": SECRET})])
        assert done.results == [{"kept": {"name": SECRET}}]
        assert SECRET not in repr(list(sagas._orchestrator.states.values()))
        sagas.command("Do", step=2).rejects("as asked")
        undone = sagas.run([do({"name": SECRET}), do(2)])
        assert undone.status is SagaStatus.ABORTED
        assert undone.called == ["Do", "Undo"]


def test_the_test_kit_says_which_service_has_not_the_key() -> None:
    sagas = Sagas(_work(Keyring({"new": NEW})), codec=Keyring({"old": OLD}))
    with pytest.raises(ScenarioError, match="service work cannot open Do: it is sealed with key old"):
        sagas.run([do(SECRET)])
