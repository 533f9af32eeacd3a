"""The examples of docs/sagas.md, graphs.md, operating.md and references.md, word for word."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from sagastream import SagaClient
from sagastream.core.begin_parsing import parse_begin
from support.page import Shell
from support.processes import SAMPLES, Commands
from support.servers import Server
from support.stores import ONLY
from support.streams import add_reply, append_requests
from support.waiting import until

ROOT = Path(__file__).parents[2]
SAGAS = (ROOT / "docs" / "sagas.md").read_text()
OPERATING = (ROOT / "docs" / "operating.md").read_text()
README = (ROOT / "README.md").read_text()
GRAPHS = (ROOT / "docs" / "graphs.md").read_text()
REFERENCES = (ROOT / "docs" / "references.md").read_text()


def only(pattern: str, text: str) -> str:
    [found] = re.findall(pattern, text, re.DOTALL)
    return str(found)


def test_the_saga_with_a_pivot_completes(server: Server, commands: Commands) -> None:
    for arguments in (("worker",), *(("service", where) for where in SAMPLES)):
        commands.quiet(*arguments, env={"REDIS_URL": server.url})
    request = only(r"```json\n(.*?)```", SAGAS)
    done = commands.run("begin", "-", "--wait", given=request, REDIS_URL=server.url)
    assert done.returncode == 0, done.stderr
    shown = commands.run("show", "order-17", "--json", REDIS_URL=server.url)
    assert json.loads(shown.stdout)["status"] == "COMPLETED"


def test_the_graph_of_the_page_completes_on_its_services(server: Server, commands: Commands) -> None:
    (commands.folder / "trip.json").write_text(re.findall(r"```json\n(.*?)```", GRAPHS, re.DOTALL)[0])
    (commands.folder / "trip.py").write_text(only(r"```python\n# trip\.py\n(.*?)```", GRAPHS))
    ((up, begin),) = re.findall(r"^    sagastream (up .*) &\n    sagastream (begin trip.*)$", GRAPHS, re.MULTILINE)
    (signal,) = re.findall(r"^sagastream (signal trip-17 .*)$", GRAPHS, re.MULTILINE)
    env = {"REDIS_URL": server.url}
    commands.quiet(*up.split(), env=env)
    done = commands.run(*begin.split(), **env)
    assert (done.returncode, done.stdout) == (0, "trip-17 accepted\n"), done.stderr
    client = SagaClient(server.broker())
    until(lambda: (now := client.get("trip-17")) and "approval" in now.waiting_for, what="it waits for its approval")
    assert commands.run(*shlex.split(signal), **env).returncode == 0
    state = client.wait("trip-17", 60)
    assert (str(state.status), state.completed_steps) == ("COMPLETED", (1, 2, 4, 5))


def test_the_saga_with_references_completes_on_the_sample_services(server: Server, commands: Commands) -> None:
    (commands.folder / "order.json").write_text(re.findall(r"```json\n(.*?)```", REFERENCES, re.DOTALL)[0])
    typed = REFERENCES.replace("\\\n", "")
    ((up, begin),) = re.findall(r"^    sagastream (up .*) &\n    sagastream (begin .*)$", typed, re.MULTILINE)
    commands.quiet(*up.split(), env={"REDIS_URL": server.url})
    done = commands.run(*begin.split(), REDIS_URL=server.url)
    assert (done.returncode, done.stdout) == (0, "order-18 COMPLETED\n"), done.stderr
    shown = json.loads(commands.run("show", "order-18", "--json", REDIS_URL=server.url).stdout)
    assert shown["completed_steps"] == [1, 2, 3]


def test_the_saga_from_python_completes(server: Server, commands: Commands) -> None:
    (commands.folder / "shop.py").write_text(only(r"```python\n# shop\.py\n(.*?)```", README))
    for arguments in (("worker",), ("service", "shop:service")):
        commands.quiet(*arguments, env={"REDIS_URL": server.url})
    script = only(r"```python\n(.*?)```", SAGAS)
    env = commands.environment(REDIS_URL=server.url)
    said = subprocess.run(
        [sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=120, check=True
    )
    assert said.stdout == "COMPLETED None None\n"


def test_what_operators_type_does_what_it_says(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands: Commands
) -> None:
    monkeypatch.setenv("REDIS_URL", server.url)
    client = server.broker().client
    append_requests(client, [parse_begin({"saga_id": "ID", "steps": [{"transaction": "Do", "service": "nobody"}]})])
    add_reply(client, "nobody", {"body": "garbage"})
    add_reply(client, "nobody", {"body": "rubbish"})
    worker = commands.quiet("worker", env={"REDIS_URL": server.url})
    until(lambda: client.xlen(ONLY.quarantine) == 2 and client.zcard(ONLY.timers) == 1, what="all is read")
    shell = Shell(server, tmp_path)
    blocks = re.findall(r"\n\n((?:    (?:sagastream|redis-cli) .*\n)+)", OPERATING)
    looks, finds, *_, alive, runs_long = blocks  # the others have tests of their own
    (quarantine,) = (block for block in blocks if "quarantine list" in block)
    assert "worker" in shell.run("exec 2>&1\n" + alive)
    assert "WRONGTYPE" not in shell.run("exec 2>&1\n" + runs_long)
    worker.terminate()
    worker.wait(60)
    once = "".join(line for line in looks.splitlines(keepends=True) if "--watch" not in line)  # that waits for the end
    said = shell.run("exec 2>&1\n" + once)
    assert re.search(r"^ID +PENDING", said, re.MULTILINE)
    assert "nobody to answer Do, step 1" in said
    assert "waiting_for" in said
    assert shell.run("exec 2>&1\n" + finds).count("0 shown of 0") == 3
    for command in quarantine.strip().splitlines():
        newest = str(client.xrevrange(ONLY.quarantine, count=1)[0][0].decode())  # type: ignore[index,union-attr]
        assert shell.run("exec 2>&1\n" + command.replace("ENTRY …", newest).replace("ENTRY", newest))
    assert client.xlen(ONLY.quarantine) == 0
    assert client.xlen(ONLY.replies("nobody")) == 1  # the message that was put back
