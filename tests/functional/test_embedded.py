"""The embedded server of a home: it is shared, has one owner, and is never left behind."""

import contextlib
import gc
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from pathlib import Path

import pytest
import redis

from sagastream import SagaClient
from sagastream.broker.connection import Broker
from sagastream.broker.embedded import EmbeddedServer
from sagastream.broker.outage import Outage
from sagastream.errors import BrokerError
from support.processes import Commands
from support.servers import alive
from support.waiting import takes_less_than, until


def pid_of(home: Path) -> int:
    return int((home / "valkey.pid").read_text())


def test_it_is_set_up_to_lose_nothing(home: Path) -> None:
    broker = Broker(home=home)
    try:
        assert broker.client.info("persistence")["aof_enabled"] == 1
        assert broker.client.info("memory")["maxmemory_policy"] == "noeviction"
        assert broker.client.info("server")["tcp_port"] == 0
        assert broker.client.info("server")["hz"] == 100
        assert broker.embedded is not None
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE(broker.embedded.endpoint.path.stat().st_mode) == 0o700
    finally:
        broker.close()


def test_its_data_take_as_much_memory_as_is_asked_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGASTREAM_MAXMEMORY", "64mb")
    broker = Broker(home=home)
    try:
        assert broker.client.info("memory")["maxmemory"] == 64 << 20
    finally:
        broker.close()
    monkeypatch.setenv("SAGASTREAM_MAXMEMORY", "lots")
    with pytest.raises(BrokerError, match="MAXMEMORY is 'lots': give a whole number of kb, mb or gb, at least 16mb"):
        Broker(home=home)
    monkeypatch.delenv("SAGASTREAM_MAXMEMORY")
    broker = Broker(home=home)  # the refusal has left nothing behind
    try:
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert 16 << 20 <= broker.client.info("memory")["maxmemory"] <= machine // 2
    finally:
        broker.close()


def test_a_guest_leaves_without_stopping_it(home: Path) -> None:
    owner, guest = Broker(home=home), Broker(home=home)
    pid = pid_of(home)
    assert owner.embedded is not None
    assert guest.embedded is not None
    assert (owner.embedded.owned, guest.embedded.owned) == (True, False)
    guest.close()
    assert owner.client.ping()
    owner.close()
    assert not alive(pid)


def test_the_last_process_to_leave_stops_it(home: Path) -> None:
    owner = Broker(home=home)
    pid = pid_of(home)
    code = f"""
import sys
from sagastream.broker.connection import Broker
broker = Broker(home={str(home)!r})
print(broker.client.ping(), flush=True)
sys.stdin.readline()
broker.restore()
print(broker.embedded.owned, flush=True)
sys.stdin.readline()
broker.close()
"""
    guest = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert guest.stdin is not None
    assert guest.stdout is not None
    assert guest.stdout.readline() == b"True\n"
    with redis.Redis(unix_socket_path=str(home / "valkey.sock")) as bystander:
        assert bystander.ping()
        owner.close()
        assert alive(pid)
        guest.stdin.write(b"\n")
        guest.stdin.flush()
        assert guest.stdout.readline() == b"True\n"
        guest.communicate(b"\n")
        assert not alive(pid)


def test_after_a_crash_of_the_server_its_data_are_found(home: Path) -> None:
    broker = Broker(home=home)
    broker.client.set("kept", "yes")
    os.kill(pid_of(home), 9)
    until(lambda: not answers(broker), what="the server is gone")
    broker.restore()
    assert broker.client.get("kept") == b"yes"
    broker.close()


def answers(broker: Broker) -> bool:
    try:
        return bool(broker.client.ping())
    except redis.ConnectionError:
        return False


def test_a_crashed_owners_server_is_adopted_and_stopped_in_the_end(home: Path) -> None:
    code = f"""
import contextlib
import gc
import os
import re
from sagastream.broker.connection import Broker
Broker(home={str(home)!r})
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    pid = pid_of(home)
    assert alive(pid)
    broker = Broker(home=home)
    assert pid_of(home) == pid
    assert broker.embedded is not None
    assert broker.embedded.owned
    broker.close()
    assert not alive(pid)


def test_many_that_start_at_once_share_one_server(home: Path) -> None:
    code = textwrap.dedent(f"""
        import sys
        from sagastream.broker.connection import Broker
        broker = Broker(home={str(home)!r})
        print(broker.client.info("server")["process_id"], broker.client.incr("count"), flush=True)
        sys.stdin.read()
        broker.close()
    """)
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(6)
    ]
    said = []
    for process in started:
        assert process.stdout is not None
        said.append(process.stdout.readline().split())
    assert len({pid for pid, _ in said}) == 1
    assert sorted(int(count) for _, count in said) == [1, 2, 3, 4, 5, 6]
    for process in started:
        process.communicate()
        assert process.returncode == 0
    assert not alive(int(said[0][0]))


def test_of_many_that_leave_at_once_the_last_stops_it(home: Path) -> None:
    code = textwrap.dedent(f"""
        import sys
        from sagastream.broker.connection import Broker
        broker = Broker(home={str(home)!r})
        print(broker.client.ping(), flush=True)
        sys.stdin.read()
        broker.close()
    """)
    for _ in range(5):
        read, write = os.pipe()
        started = [subprocess.Popen([sys.executable, "-c", code], stdin=read, stdout=subprocess.PIPE) for _ in range(5)]
        os.close(read)
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == b"True\n"
        pid = pid_of(home)
        os.close(write)  # all start at the same moment
        for process in started:
            process.communicate()
            assert process.returncode == 0
        assert not alive(pid)


def test_a_forked_child_does_not_keep_the_home(home: Path) -> None:
    broker = Broker(home=home)
    pid = pid_of(home)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # until the parent lets go
        os._exit(0)
    os.close(read)
    try:
        broker.close()
        assert not alive(pid)
        again = Broker(home=home)
        assert again.embedded is not None
        assert again.embedded.owned
        again.close()
    finally:
        os.close(write)
        os.waitpid(child, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("preloaded", [None, "", "libthey-chose.so"])
def test_it_runs_with_jemalloc_where_there_is_one_and_nobody_chose_another(
    home: Path, monkeypatch: pytest.MonkeyPatch, preloaded: str | None
) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    if preloaded is not None:
        monkeypatch.setenv("LD_PRELOAD", preloaded)
    there = find_library("jemalloc") is not None
    if not there and "CI" not in os.environ:
        pytest.skip("there is no jemalloc")
    broker = Broker(home=home)
    mapped = Path(f"/proc/{pid_of(home)}/maps").read_text()
    broker.close()
    assert ("libjemalloc" in mapped) == (preloaded is None)


def none(_: str) -> None:
    return None


def cannot_look(_: str) -> str:
    raise FileNotFoundError("no usable temporary directory found")


@pytest.mark.parametrize("find", [none, cannot_look])
def test_it_runs_without_jemalloc_where_there_is_none(
    home: Path, monkeypatch: pytest.MonkeyPatch, find: Callable[[str], str | None]
) -> None:
    monkeypatch.setattr("ctypes.util.find_library", find)
    broker = Broker(home=home)
    assert broker.client.ping()
    broker.close()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a loader that can be misled")
def test_where_it_does_not_start_with_what_was_found_it_starts_without(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libc.so.6").write_text("nonsense")
    monkeypatch.setattr(
        "sagastream.broker.launch.with_jemalloc", lambda: os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    )
    broker = Broker(home=home)
    assert broker.client.ping()
    broker.close()
    assert "libc.so.6" in (home / "valkey.log").read_text()


def test_a_pid_that_is_somebody_elses_by_now_is_left_alone(home: Path) -> None:
    Broker(home=home).close()
    stranger = subprocess.Popen(["sleep", "60"])
    (home / "valkey.pid").write_text(f"{stranger.pid}\n")
    broker = Broker(home=home)
    broker.close()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def test_two_of_one_process_leave_one_after_the_other(home: Path) -> None:
    first, second = Broker(home=home), Broker(home=home)
    first.close()
    assert second.client.ping()
    pid = pid_of(home)
    second.close()
    assert not alive(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSEGV])
def test_however_the_server_dies_it_is_started_again(home: Path, number: signal.Signals) -> None:
    broker = Broker(home=home)
    broker.client.set("kept", "yes")
    os.kill(pid_of(home), number)
    until(lambda: not answers(broker), what="the server is gone")
    until(lambda: broker.restore() or answers(broker), what="it is back")  # type: ignore[func-returns-value]
    assert broker.client.get("kept") == b"yes"
    broker.close()


def test_a_path_too_long_for_a_socket_works_all_the_same(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 30) / "with space" / "home"
    broker = Broker(home=home)
    broker.client.set("kept", "yes")
    broker.close()
    broker = Broker(home=home)
    assert broker.client.get("kept") == b"yes"
    broker.close()


def test_a_server_that_cannot_start_says_why(home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "appendonlydir").mkdir()
    (home / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")
    with pytest.raises(BrokerError, match=r"stopped with exit code 1: .*AOF manifest"):
        Broker(home=home)


def test_a_home_that_is_no_folder_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match=r"cannot use .*file/home as SAGASTREAM_HOME: Not a directory"):
        EmbeddedServer(tmp_path / "file" / "home").ensure()


@pytest.mark.parametrize("url", ["http://localhost", "redis://localhost:port"])
def test_an_unusable_url_is_told_of(url: str) -> None:
    with pytest.raises(BrokerError, match="the url that was given is not usable"):
        Broker(url)


@pytest.mark.parametrize(
    "code",
    [
        "import sagastream; sagastream.SagaClient()",
        "import sagastream; client = sagastream.SagaClient()",
        "import sagastream; client = sagastream.AsyncSagaClient(); raise SystemExit(3)",
        "import sagastream; client = sagastream.SagaClient(); client.list(); 1 / 0",
        "import sagastream; one, two = sagastream.SagaClient(), sagastream.SagaClient(); one.close()",
        "import os, sagastream; client = sagastream.SagaClient(); os.fork() or os._exit(0); os.wait()",
    ],
)
def test_a_program_that_closes_nothing_leaves_nothing_behind(home: Path, code: str) -> None:
    env = os.environ | {"SAGASTREAM_HOME": str(home)}
    env.pop("REDIS_URL", None)
    subprocess.run([sys.executable, "-c", code], env=env, check=False, capture_output=True, timeout=60)
    assert (home / "appendonlydir").is_dir()
    assert not EmbeddedServer(home).is_running


def test_a_client_to_which_nothing_refers_leaves(home: Path) -> None:
    client = SagaClient(Broker(home=home))
    pid = pid_of(home)
    del client
    gc.collect()
    assert not alive(pid)


@pytest.mark.parametrize("command", [("service", "shop:service"), ("up", "--service", "shop:service")])
def test_a_service_whose_module_makes_a_client_leaves_nothing_behind(
    home: Path, commands: Commands, command: tuple[str, ...]
) -> None:
    (commands.folder / "shop.py").write_text(
        "from sagastream import SagaClient, Service\n\nclient = SagaClient()\nservice = Service('shop')\n"
        "\n\n@service.command('Do', compensation=None)\ndef do(params, context):\n    return params\n"
    )
    process = commands.start(*command, env={"SAGASTREAM_HOME": str(home)})
    broker = Broker(home=home)
    until(lambda: broker.client.keys("*:services*shop*") or broker.client.keys("*published*"), what="it is there")
    broker.close()
    process.terminate()
    process.communicate(timeout=60)
    assert not EmbeddedServer(home).is_running


def test_a_service_that_gives_up_a_handler_leaves_nothing_behind(home: Path, commands: Commands) -> None:
    (commands.folder / "shop.py").write_text(
        "import threading\nfrom sagastream import SagaClient, Service\n\n"
        "client = SagaClient()\nservice = Service('shop')\n"
        "\n\n@service.command('Do', compensation=None)\ndef do(params, context):\n    threading.Event().wait()\n"
    )
    env = {"SAGASTREAM_HOME": str(home)}
    worker = commands.start("worker", env=env)
    service = commands.start("service", "shop:service", "--grace", "0", env=env)
    given = '{"saga_id": "s1", "steps": [{"transaction": "Do", "service": "shop"}]}'
    assert commands.run("begin", "-", given=given, SAGASTREAM_HOME=str(home)).returncode == 0
    broker = Broker(home=home)
    until(lambda: broker.client.hget("saga:{0}:saga:s1", "waiting_for"), what="the worker has begun it")
    stream = "saga:{0}:commands:shop"
    until(lambda: any(group["pending"] for group in broker.client.xinfo_groups(stream)), what="the handler runs")
    broker.close()
    worker.terminate()
    worker.communicate(timeout=60)
    service.terminate()
    assert "still running" in service.communicate(timeout=60)[1].decode()
    assert service.returncode == 1
    assert not EmbeddedServer(home).is_running


# --- a server that cannot go on


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 4 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted only by root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_told_in_the_words_of_the_server(small_disk: Path, commands: Commands) -> None:
    home = small_disk / "home"
    env = {"SAGASTREAM_HOME": str(home)}
    worker = commands.start("worker", env=env)
    assert worker.stderr is not None
    assert b"started" in worker.stderr.readline()
    broker = Broker(home=home)
    until(lambda: broker.client.keys("*:alive"), what="the worker is there")
    with contextlib.suppress(redis.ConnectionError):
        for number in range(400):
            broker.client.set(f"k{number}", "x" * 20_000)
    broker.client.close()
    lines: list[str] = []
    until(lambda: lines.append(worker.stderr.readline().decode()) or "is full" in lines[-1], what="it says so")  # type: ignore[func-returns-value, union-attr]
    words = r"the disk of \S+home is full \(\d+ KiB are free\); the Valkey stopped with the words: "
    words += r"(Short write|Error writing) .*AOF.*; make room"
    assert re.search(words, lines[-1])
    assert len(lines) <= 3, lines  # no loop of crashes
    for arguments in (("doctor",), ("list",), ("show", "s1")):
        done = commands.run(*arguments, **env)
        assert done.returncode == 1
        assert re.search(words, done.stderr), done.stderr
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    until(lambda: answers(broker), what="its owner starts it again")
    done = commands.run("doctor", **env)
    assert done.returncode == 1, "it may happen again"
    assert re.search(r"problem   server .* stopped, and was started again; .* words: .*AOF", done.stdout)
    broker.close()


def test_how_a_server_stopped_is_told_by_its_user_and_by_doctor(
    home: Path, commands: Commands, caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker(home=home)
    outage = Outage(broker, "test", threading.Event())
    os.kill(pid_of(home), signal.SIGSEGV)
    until(lambda: not answers(broker), what="the server is gone")
    assert outage.patiently(broker.client.ping)
    assert "the embedded Valkey stopped with the words: " in caplog.text
    done = commands.run("doctor", SAGASTREAM_HOME=str(home))
    assert done.returncode == 1
    assert re.search(
        r"problem .* stopped, and was started again; .* its last words: .* crashed by signal: 11", done.stdout
    ), done.stdout
    broker.close()
    again = Broker(home=home)
    again.close()
    assert EmbeddedServer(home).last_fault() is None


def test_a_server_that_hangs_is_told_of_within_six_seconds(home: Path, commands: Commands) -> None:
    broker = Broker(home=home)
    began_s = time.monotonic()
    assert commands.run("list", SAGASTREAM_HOME=str(home)).returncode == 0
    usual_s = time.monotonic() - began_s  # less than half a second, but for a busy machine
    os.kill(pid_of(home), signal.SIGSTOP)
    try:
        for arguments in (("list",), ("doctor",), ("begin", "-")):
            with takes_less_than(5.5 + usual_s):
                done = commands.run(*arguments, given='{"saga_id": "s1", "steps": []}', SAGASTREAM_HOME=str(home))
            assert done.returncode == 1
            hangs = (
                f"Error: the Valkey of {home} says nothing for 5 s: it hangs, or was stopped; see {home}/valkey.log\n"
            )
            assert done.stderr == hangs or arguments[0] == "begin"
    finally:
        os.kill(pid_of(home), signal.SIGCONT)
    broker.close()


def test_no_folder_is_left_for_the_socket_of_a_long_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = Path(tempfile.mkdtemp(prefix="sgs-"))  # the path of a socket must be short
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    home = tmp_path / ("long" * 30) / "home"
    assert not EmbeddedServer(home).is_running
    assert list(temporary.iterdir()) == []
    broker = Broker(home=home)
    assert len(list(temporary.iterdir())) == 1
    broker.close()
    assert list(temporary.iterdir()) == []
    temporary.rmdir()


# --- a store that is not there


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "o-1"),
        ("list",),
        ("doctor",),
        ("doctor", "--repair"),
        ("quarantine", "list"),
        ("quarantine", "show", "1-0"),
        ("quarantine", "drop", "1-0"),
        ("cancel", "o-1", "--reason", "why"),
        ("retry", "o-1", "--reason", "why"),
    ],
)
def test_a_command_that_only_looks_makes_no_store(commands: Commands, arguments: tuple[str, ...]) -> None:
    done = commands.run(*arguments)
    home = commands.home
    where = "go to the folder in which sagastream runs, or set SAGASTREAM_HOME or REDIS_URL"
    assert (done.returncode, done.stderr) == (1, f"Error: there is no store in {home}: {where}\n")
    assert list(commands.folder.iterdir()) == []


def test_what_is_not_there_is_told_with_the_store_in_which_it_is_not(commands: Commands) -> None:
    commands.run("begin", "-", given='{"saga_id": "s1", "steps": [{"transaction": "A", "service": "a"}]}')
    home = commands.home
    done = commands.run("show", "o-1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no saga o-1 in the store" in done.stderr
    assert str(home) in done.stderr
    assert not EmbeddedServer(home).is_running
