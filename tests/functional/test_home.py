"""What others can do through a home, a folder that they give to somebody, or a shell on the same machine: nothing."""

import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagastream import SagaClient
from sagastream.broker.connection import Broker
from sagastream.broker.embedded import EmbeddedServer
from sagastream.errors import BrokerError
from support.needs import missing
from support.processes import Commands
from support.servers import Server, alive, free_port
from support.waiting import takes_less_than, until

#: A user who is somebody else.
NOBODY = 65534

#: Code that leaves a mark when it is loaded, however that comes about.
MARKS = '#include <fcntl.h>\n__attribute__((constructor)) static void mark(void) {{ creat("{mark}", 0600); }}\n'


def store_of(folder: Path, *commands: tuple[str, ...]) -> None:
    """A store whose append-only file holds these commands, as somebody writes it by hand."""
    data = folder / "appendonlydir"
    data.mkdir(parents=True)
    folder.chmod(0o700)
    (data / "appendonly.aof.manifest").write_text("file appendonly.aof.1.incr.aof seq 1 type i\n")
    words = [(f"*{len(command)}", *(f"${len(word)}\r\n{word}" for word in command)) for command in commands]
    (data / "appendonly.aof.1.incr.aof").write_text("".join(f"{line}\r\n" for one in words for line in one))


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    return tmp_path / "code of somebody else was run"


@pytest.fixture
def library(tmp_path: Path, marked: Path) -> Path:
    """A library that leaves a mark when a server loads it."""
    if (compiler := shutil.which("cc")) is None:
        missing("there is no C compiler: it makes what the server must not load")
    source = tmp_path / "m.c"
    source.write_text(MARKS.format(mark=marked))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", source.with_suffix(".so"), source], check=True)
    return source.with_suffix(".so")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user of the machine can reach; those of pytest are for their user alone."""
    folder = Path(tempfile.mkdtemp(prefix="sgs-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def given_to_nobody(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def as_nobody(script: str) -> "subprocess.CompletedProcess[str]":
    """What another user's shell says."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    return subprocess.run(
        ["sh", "-c", script],
        user=NOBODY, group=NOBODY, extra_groups=[], cwd="/", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


# --- a folder that somebody gives you


def test_a_store_in_the_current_folder_is_named_once_and_not_used(
    commands: Commands, library: Path, marked: Path
) -> None:
    former = commands.folder / ".sagastream"
    store_of(former, ("MODULE", "LOAD", str(library)))
    before = [path.stat().st_mtime_ns for path in former.rglob("*")]
    for arguments in (("list",), ("doctor", "--repair")):
        done = commands.run(*arguments)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert f"there is no store in {commands.home}" in done.stderr
        assert f"{former} is not used" in done.stderr
        assert f"mv {former} {commands.home}" in done.stderr
    steps = [{"transaction": "Do", "service": "till"}]
    said = [commands.run("begin", "-", given=json.dumps({"saga_id": f"s{n}", "steps": steps})) for n in range(2)]
    assert [done.returncode for done in said] == [0, 0]
    assert [f"if it is yours, set SAGASTREAM_HOME={former}\n" in done.stderr for done in said] == [True, False]
    assert not marked.exists()
    assert [path.stat().st_mtime_ns for path in former.rglob("*")] == before


def test_the_line_that_moves_a_former_home_moves_it(commands: Commands) -> None:
    former = commands.folder / ".sagastream"
    steps = [{"transaction": "Do", "service": "till"}]
    given = json.dumps({"saga_id": "kept", "steps": steps})
    assert commands.run("begin", "-", given=given, SAGASTREAM_HOME=str(former)).returncode == 0
    line = commands.run("list").stderr.rpartition("if it is yours: ")[2]
    subprocess.run(["sh", "-c", line], check=True)
    done = commands.run("show", "kept")
    assert "requests that no worker has read: 1" in done.stderr
    assert str(commands.home) in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("MODULE", "LOAD", "LIBRARY"),
        ("CONFIG", "SET", "port", "6390"),
        ("CONFIG", "SET", "maxmemory-policy", "allkeys-random"),
        ("ACL", "SETUSER", "default", "on", "nopass"),
        ("REPLICAOF", "127.0.0.1", "6390"),
        ("SLAVEOF", "127.0.0.1", "6390"),
        ("MIGRATE", "127.0.0.1", "6390", "key", "0", "1000"),
        ("DEBUG", "SLEEP", "0"),
    ],
)
def test_a_store_that_holds_more_than_data_is_not_loaded(
    home: Path, library: Path, marked: Path, command: tuple[str, ...]
) -> None:
    words = [str(library) if word == "LIBRARY" else word for word in command]
    store_of(home, ("SET", "key", "value"), tuple(words))
    with pytest.raises(BrokerError, match=rf"the embedded Valkey stopped with exit code 1: .*ommand '{command[0]}'"):
        Broker(home=home)
    assert not marked.exists()


#: Modules that our processes import, and one of a sample service.
SHADOWS = ("click", "redis", "sqlite3", "select", "msgspec", "orjson", "sagastream", "sagastream_bridge")


@pytest.mark.parametrize("arguments", [("demo",), ("up",), ("bridge",), ("bench", "--sagas", "100", "--rounds", "1")])
def test_no_module_of_the_current_folder_is_run_instead_of_ours(
    commands: Commands, marked: Path, arguments: tuple[str, ...]
) -> None:
    leaves_a_mark = f"open({str(marked)!r}, 'a').write(__file__ + '\\n')\nraise SystemExit(9)\n"
    for name in SHADOWS:
        (commands.folder / f"{name}.py").write_text(leaves_a_mark)
    (commands.folder / "sagastream_stubs").mkdir()
    (commands.folder / "sagastream_stubs" / "__init__.py").write_text(leaves_a_mark)
    process = commands.start(*arguments)
    if arguments[0] in ("up", "bridge"):
        until(lambda: EmbeddedServer(commands.home).is_running, what="the server runs")
        broker = Broker(home=commands.home)
        until(lambda: len(broker.client.zrange("saga:alive", 0, -1)) >= 4 or marked.exists(), what="all four run")
        broker.close()
        process.terminate()
    said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert not marked.exists(), marked.read_text()


def test_the_package_as_a_command_runs_no_module_of_the_current_folder_either(commands: Commands, marked: Path) -> None:
    """But for a whole package of our name: that is what Python looks for first."""
    planted = commands.folder / "sagastream-9.dist-info"
    planted.mkdir()
    (planted / "METADATA").write_text("Metadata-Version: 2.1\nName: sagastream\nVersion: 9\n")
    (planted / "entry_points.txt").write_text("[console_scripts]\nsagastream = evil:main\n")
    for name in ("evil", "click", "redis", "email", "json", "zipfile"):
        (commands.folder / f"{name}.py").write_text(f"open({str(marked)!r}, 'a').write(__file__ + '\\n')\n")
    process = commands.start("-m", "sagastream", "list", program=(sys.executable,))
    said = process.communicate(timeout=60)[1].decode()
    assert not marked.exists(), marked.read_text()
    assert "there is no store in" in said


def test_a_service_that_is_named_is_found_in_the_current_folder(commands: Commands) -> None:
    (commands.folder / "shop.py").write_text(
        "from sagastream import Service\n\nservice = Service('till')\n"
        "\n\n@service.command('Do', compensation=None)\ndef do(params, context):\n    return {}\n"
    )
    commands.quiet("up", "--service", "shop:service")
    given = json.dumps({"saga_id": "s1", "steps": [{"transaction": "Do", "service": "till"}]})
    assert commands.run("begin", "-", "--wait", given=given).stdout == "s1 COMPLETED\n"


def test_where_the_store_is_is_told(commands: Commands) -> None:
    up = commands.start("up")
    assert up.stdout is not None
    said = [up.stdout.readline().decode() for _ in range(3)]
    assert said[1:] == [f"home     {commands.home}\n", f"look     redis-cli -s {said[0].split('unix://')[1]}"]
    look = said[2].split()[1:]
    assert subprocess.run([*look, "PING"], capture_output=True, text=True, check=True).stdout == "PONG\n"
    given = json.dumps({"saga_id": "s1", "steps": [{"transaction": "Do", "service": "till"}]})
    assert commands.run("begin", "-", given=given).returncode == 0
    until(lambda: commands.run("show", "s1").returncode == 0, what="a worker has begun it")
    assert commands.run("show", "s1").stdout.endswith(f"\n  store    {commands.home}\n")


# --- a home that is not ours alone


def refused(home: Path) -> str:
    """Why a home is refused, by those that would make it and by those that only look. Nothing runs then."""
    said = []
    for create in (True, False):
        with pytest.raises(BrokerError) as refusal:
            Broker(home=home, create=create)
        said.append(str(refusal.value))
    assert said[0] == said[1]
    return said[0]


def test_a_home_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "home").symlink_to("elsewhere")
    assert "is a symbolic link; name the folder itself" in refused(tmp_path / "home")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o770])
def test_a_home_that_is_open_to_others_is_refused_until_it_is_not(home: Path, mode: int) -> None:
    home.mkdir()
    home.chmod(mode)
    said = refused(home)
    assert said.endswith(f"other users may open it; chmod 700 {home}")
    assert list(home.iterdir()) == []
    home.chmod(0o700)
    Broker(home=home).close()


def test_a_home_of_another_user_is_refused(home: Path) -> None:
    store_of(home, ("SET", "key", "value"))
    given_to_nobody(home)
    assert f"it belongs to another user, {NOBODY}" in refused(home)
    assert [path.name for path in home.iterdir()] == ["appendonlydir"]


def test_a_home_below_a_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    home = tmp_path / "theirs" / "home"
    home.mkdir(parents=True, mode=0o700)
    given_to_nobody(home.parent)
    assert f"{home.parent} belongs to another user, {NOBODY}" in refused(home)
    (tmp_path / "link").symlink_to(tmp_path)
    given_to_nobody(tmp_path / "link")
    home = tmp_path / "link" / "home"
    home.mkdir(mode=0o700)
    assert f"{home.parent} belongs to another user" in refused(home)


@pytest.mark.parametrize(("mode", "group", "safe"), [
    (0o777, 0, False), (0o1777, 0, True), (0o775, NOBODY, False), (0o775, 0, True), (0o1775, NOBODY, True),
])  # fmt: skip
def test_a_home_that_others_could_replace_is_refused(tmp_path: Path, mode: int, group: int, safe: bool) -> None:
    home = tmp_path / "above" / "home"
    home.mkdir(parents=True, mode=0o700)
    if group:
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(home.parent, -1, group)
    home.parent.chmod(mode)
    if safe:
        Broker(home=home).close()
    else:
        assert f"other users may write to {home.parent}" in refused(home)


def test_in_a_user_namespace_the_folders_of_an_unknown_root_are_not_those_of_another_user(tmp_path: Path) -> None:
    """As in many containers: root of the machine has no number there, and is shown as nobody."""
    home = tmp_path / "above" / "home"
    home.mkdir(parents=True, mode=0o700)
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(home.parent, 12345, 12345)
    look = (
        f"from pathlib import Path; from sagastream.broker.home import Home; "
        f"Home(Path({str(home)!r})).check(); print('safe')"
    )
    inside = subprocess.run(
        ["unshare", "--user", "--map-root-user", sys.executable, "-c", look],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare failed" in inside.stderr:
        pytest.skip("this machine has no user namespaces")
    assert inside.stdout == "safe\n", inside.stderr
    assert "belongs to another user, 12345" in refused(home)


def test_all_that_is_made_is_for_its_user_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        broker = Broker(home=tmp_path / "made" / "too" / "home")
    finally:
        os.umask(before)
    broker.client.set("key", "value")
    broker.client.bgrewriteaof()
    until(lambda: not broker.client.info("persistence")["aof_rewrite_in_progress"], what="the file is rewritten")
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "made", *(tmp_path / "made").rglob("*")]}
    assert {path: mode for path, mode in modes.items() if mode & 0o077} == {}
    broker.close()


# --- what stands in a home


@pytest.mark.parametrize("name", ["users.lock", "owner.lock", "server.lock", "valkey.log"])
@pytest.mark.parametrize("kind", ["link", "hard link", "pipe", "folder", "socket"])
def test_a_file_that_somebody_put_there_is_refused(home: Path, tmp_path: Path, name: str, kind: str) -> None:
    home.mkdir(mode=0o700)
    precious, planted = tmp_path / "precious", home / name
    precious.write_text("precious")
    match kind:
        case "link":
            planted.symlink_to(precious)
        case "hard link":
            planted.hardlink_to(precious)
        case "pipe":
            os.mkfifo(planted)
        case "folder":
            planted.mkdir()
        case _:
            bound_at(planted).close()
    with takes_less_than(10), pytest.raises(BrokerError, match=f"{name} is not a file that sagastream made; remove it"):
        Broker(home=home)
    assert precious.read_text() == "precious"
    assert stat.S_IMODE(precious.stat().st_mode) & 0o044, "not touched"


def bound_at(path: Path) -> socket.socket:
    """A socket at a path that may be too long to be named."""
    listening, here = socket.socket(socket.AF_UNIX), os.open(".", os.O_RDONLY)
    try:
        os.chdir(path.parent)
        listening.bind(path.name)
    finally:
        os.chdir(here)
        os.close(here)
    return listening


@pytest.mark.parametrize("name", ["valkey.pid", "socket", ".gitignore"])
def test_a_link_in_the_place_of_what_is_written_anew_is_replaced(tmp_path: Path, name: str) -> None:
    home = tmp_path / ("long" * 20)
    home.mkdir(mode=0o700)
    (tmp_path / "precious").write_text("/")
    (home / name).symlink_to(tmp_path / "precious")
    if name == "socket":  # which is read, too
        with pytest.raises(BrokerError, match="socket is not a file that sagastream made; remove it"):
            Broker(home=home)
    else:
        Broker(home=home).close()
    assert (tmp_path / "precious").read_text() == "/"


@pytest.mark.parametrize("folder", [True, False])
def test_data_behind_a_link_are_refused(home: Path, tmp_path: Path, folder: bool) -> None:
    store_of(home, ("SET", "key", "value"))
    data = home / "appendonlydir"
    moved = data if folder else data / "appendonly.aof.1.incr.aof"
    moved.rename(tmp_path / "elsewhere")
    moved.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BrokerError, match=r"appendonlydir .* there is a symbolic link in it"):
        Broker(home=home)


def test_a_log_of_a_child_process_follows_no_link(commands: Commands, tmp_path: Path) -> None:
    demo = commands.home / "demo"
    demo.mkdir(parents=True, mode=0o700)
    (tmp_path / "precious").write_text("precious")
    (demo / "worker-1.log").symlink_to(tmp_path / "precious")
    done = commands.run("demo")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "worker-1.log is not a file that sagastream made" in done.stderr
    assert (tmp_path / "precious").read_text() == "precious"


def test_no_process_is_ended_because_its_number_stands_in_a_file(home: Path) -> None:
    owner = server_of_a_killed_owner(home)
    stranger = subprocess.Popen(["sleep", "60"])
    (home / "valkey.pid").write_text(f"{stranger.pid}\n")
    broker = Broker(home=home)
    assert broker.client.info("server")["process_id"] == owner
    broker.close()
    assert not alive(owner), "it was stopped all the same"
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


def server_of_a_killed_owner(home: Path) -> int:
    """The process of a server whose owner was killed."""
    code = "import os; from sagastream.broker.connection import Broker; "
    code += f"Broker(home={str(home)!r}); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", code], check=False)
    return int((home / "valkey.pid").read_text())


def test_a_stopped_server_of_a_killed_owner_is_ended(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers nobody. Who listens on its socket is known to the kernel."""
    monkeypatch.setattr("sagastream.broker.embedded.STOP_TIMEOUT_S", 0.5)
    pid = server_of_a_killed_owner(home)
    os.kill(pid, signal.SIGSTOP)
    server = EmbeddedServer(home)
    server._stop_adopted()
    assert not alive(pid)


def test_a_lock_that_is_held_for_ever_is_told_of(home: Path) -> None:
    Broker(home=home).close()
    with (home / "users.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(BrokerError, match=r"another process is stopping the Valkey of .*, and does not end"):
            EmbeddedServer(home).ensure(patience_s=0.1)


# --- another user's shell


def test_another_users_shell_reaches_neither_home_nor_server(open_folder: Path) -> None:
    home = open_folder / "home"
    broker = Broker(home=home)
    SagaClient(broker).begin("s1", [{"transaction": "Do", "service": "till"}])
    assert broker.embedded is not None
    for script in (
        f"ls {home}",
        f"cat {home}/valkey.log",
        f"cat {home}/appendonlydir/*",
        f"redis-cli -s {broker.embedded.endpoint.path} FLUSHALL",
        f"flock {home}/users.lock true",
        f"rm -rf {home}",
        f"mv {home} {open_folder}/mine",
    ):
        done = as_nobody(f"{script} 2>&1")
        assert "ermission denied" in done.stdout, (script, done)
    assert broker.client.info("server")["tcp_port"] == 0
    assert broker.client.xlen("saga:{0}:requests") == 1
    broker.close()


def test_a_port_that_was_asked_for_needs_a_password_that_no_other_user_can_read(open_folder: Path) -> None:
    home, port = open_folder / "home", free_port()
    broker = Broker(home=home, port=port)
    assert broker.embedded is not None
    password = (home / "password").read_text().strip()
    assert len(password) == 64
    assert password not in f"{broker.shown_url} {broker.store}"
    broker.client.set("key", "value")
    for script, said in (
        (f"redis-cli -p {port} FLUSHALL", "NOAUTH"),
        (f"redis-cli -p {port} CONFIG GET requirepass", "NOAUTH"),
        (f"redis-cli -p {port} -a '' --no-auth-warning GET key", "NOAUTH"),
        (f"redis-cli -p {port} --user default --pass default --no-auth-warning GET key", "WRONGPASS"),
        (f"cat {home}/password", "ermission denied"),
        (f"redis-cli -s {broker.embedded.endpoint.path} PING", "ermission denied"),
        ("cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c unix://:", "0\n"),
    ):
        assert said in as_nobody(f"{script} 2>&1").stdout, script
    assert password not in subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True).stdout
    (listens,) = (
        line for line in Path("/proc/net/tcp").read_text().splitlines() if f":{port:04X} 00000000:0000" in line
    )
    assert listens.split()[1].startswith("0100007F:")
    assert broker.client.get("key") == b"value"
    broker.close()


def test_whoever_uses_a_home_with_a_port_has_its_password(commands: Commands) -> None:
    port = free_port()
    up = commands.start("up", "--port", str(port), "--workers", "1")
    assert up.stdout is not None
    said = {line.split()[0]: line.decode() for line in (up.stdout.readline() for _ in range(5))}
    assert said[b"broker"] == f"broker   unix://:***@{said[b'look'].split()[-1]}\n"
    password = (commands.home / "password").read_text().strip()
    assert password not in "".join(said.values())
    for line in (said[b"look"], said[b"port"].split(": ")[1].strip() + "; redis-cli -u $REDIS_URL"):
        script = line.removeprefix("look     ").strip() + " PING"
        assert subprocess.check_output(["sh", "-c", script], text=True, stderr=subprocess.DEVNULL) == "PONG\n", script
    given = json.dumps({"saga_id": "s1", "steps": [{
        "transaction": "ReserveInventory", "service": "inventory", "params": {"sku": "abc123", "quantity": 1},
    }]})  # fmt: skip
    assert commands.run("begin", "-", "--wait", given=given).stdout == "s1 COMPLETED\n"
    other = commands.run("up", "--port", str(free_port()))
    assert other.returncode == 1
    assert f"the Valkey of {commands.home} runs at port {port}: end those who use it first" in other.stderr
    server = int((commands.home / "valkey.pid").read_text())
    os.kill(server, signal.SIGKILL)  # its owner starts it again, as it was
    done = commands.run("begin", "-", "--wait", given=given.replace("s1", "s2"))
    assert (done.returncode, done.stdout) == (0, "s2 COMPLETED\n")
    assert (commands.home / "password").read_text().strip() == password
    up.terminate()
    up.wait(60)
    assert commands.run("list").returncode == 0
    assert not (commands.home / "port").exists()


def test_a_port_that_is_taken_is_told_of_and_forgotten(home: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(BrokerError, match=r"stopped with exit code 1: .*port"):
            Broker(home=home, port=taken.getsockname()[1])
        Broker(home=home).close()


def test_a_port_and_a_password_that_were_put_into_a_home_are_not_used(home: Path) -> None:
    home.mkdir(mode=0o700)
    (home / "port").write_text(f"{free_port()}\n")
    (home / "password").write_text("known\n")
    broker = Broker(home=home)
    assert broker.client.info("server")["tcp_port"] == 0
    broker.close()


def test_a_port_is_not_for_a_server_of_ones_own(server: Server, commands: Commands) -> None:
    done = commands.run("up", "--port", "6390", REDIS_URL=server.url)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "a port is for the embedded Valkey" in done.stderr


def test_another_user_cannot_play_the_server_of_a_long_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever takes the name of the folder of its socket, once that is gone."""
    temporary = Path(tempfile.mkdtemp(prefix="sgs-"))
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    home = tmp_path / ("long" * 20) / "home"
    broker = Broker(home=home)
    assert broker.embedded is not None
    taken = broker.embedded.endpoint.path
    broker.close()
    taken.parent.mkdir(mode=0o755)
    with bound_at(taken) as played:
        played.listen()
        answering = threading.Thread(target=answer_pong, args=(played,), daemon=True)
        answering.start()
        given_to_nobody(taken.parent)
        broker = Broker(home=home)
        assert broker.embedded is not None
        assert broker.embedded.endpoint.path != taken
        assert broker.client.set("key", "value")
        broker.close()
    shutil.rmtree(temporary)


def answer_pong(played: socket.socket) -> None:
    try:
        while True:
            with played.accept()[0] as connection:
                connection.sendall(b"+PONG\r\n")
    except OSError:
        pass
