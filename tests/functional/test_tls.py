"""rediss://: a CA of one's own, certificates of clients; and what ends a process, since no waiting mends it."""

import asyncio
import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from sagastream import AsyncSagaClient, SagaClient
from sagastream.broker.connection import Broker, connect
from sagastream.broker.failures import greeting, is_outage, told, untrusted
from support.certificates import Authority
from support.needs import missing
from support.processes import Commands
from support.scenes import do
from support.servers import free_port
from support.waiting import until

SHOP = """
from sagastream import Service

service = Service("work")


@service.command("Do", compensation=None)
def do(params, context):
    return params
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"), "ours")


@pytest.fixture
def serve(authority: Authority, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Starts a server with a certificate; returns its port. `clients`: whether it wants certificates of clients."""
    if shutil.which("redis-server") is None:  # the embedded Valkey is built without TLS
        missing("redis-server is not on the path: Debian has it in the package redis-server")
    running: list[subprocess.Popen[bytes]] = []

    def start(certificate: tuple[Path, Path], *, clients: bool = False, port: int | None = None) -> int:
        port = port or free_port()
        folder = tmp_path / str(port)
        folder.mkdir(exist_ok=True)
        options = {"port": "0", "tls-port": str(port), "bind": "127.0.0.1", "dir": str(folder), "save": "",
                   "tls-cert-file": str(certificate[0]), "tls-key-file": str(certificate[1]),
                   "tls-ca-cert-file": str(authority.ca), "tls-auth-clients": "yes" if clients else "no",
                   "appendonly": "yes"}  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        log = (folder / "log").open("wb")
        running.append(subprocess.Popen(["redis-server", *words], stdout=log, stderr=log))
        log.close()
        until(lambda: b"eady to accept connections" in (folder / "log").read_bytes(), what="the server answers")
        return port

    def stop() -> None:
        for process in running:
            process.kill()
            process.wait()
        running.clear()

    start.stop = stop  # type: ignore[attr-defined]
    yield start
    stop()


@pytest.fixture
def watch(authority: Authority, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Starts a Sentinel, with a certificate, that watches the server at this port; returns its own port."""
    running: list[subprocess.Popen[bytes]] = []

    def start(certificate: tuple[Path, Path], master: int) -> int:
        port = free_port()
        folder = tmp_path / str(port)
        folder.mkdir()
        lines = ("port 0", f"tls-port {port}", "bind 127.0.0.1", f"dir {folder}", "tls-replication yes",
                 f"tls-cert-file {certificate[0]}", f"tls-key-file {certificate[1]}",
                 f"tls-ca-cert-file {authority.ca}", f"sentinel monitor mymaster 127.0.0.1 {master} 1")  # fmt: skip
        (folder / "conf").write_text("\n".join(lines) + "\n")
        with (folder / "log").open("wb") as log:
            words = ["redis-server", str(folder / "conf"), "--sentinel"]
            running.append(subprocess.Popen(words, stdout=log, stderr=log))
        until(lambda: b"+monitor master" in (folder / "log").read_bytes(), what="the Sentinel watches")
        return port

    yield start
    for process in running:
        process.kill()
        process.wait()


def url(port: int, ca: Path | None, own: tuple[Path, Path] | None = None, host: str = "127.0.0.1") -> str:
    options = {} if ca is None else {"ssl_ca_certs": str(ca)}
    if own is not None:
        options |= {"ssl_certfile": str(own[0]), "ssl_keyfile": str(own[1])}
    return f"rediss://{host}:{port}?" + "&".join(f"{name}={value}" for name, value in options.items())


def test_sagas_run_over_tls_with_certificates_of_clients(
    serve: Callable[..., int], authority: Authority, commands: Commands
) -> None:
    at = url(serve(authority.issue("server"), clients=True), authority.ca, authority.issue("client"))
    (commands.folder / "shop.py").write_text(SHOP)
    for arguments in (("worker",), ("service", "shop:service")):
        commands.quiet(*arguments, env={"REDIS_URL": at})
    with SagaClient(at) as client:
        client.begin("s1", [do(1), do(2)])
        assert client.wait("s1", 60).status == "COMPLETED"

    async def ask() -> Any:
        async with AsyncSagaClient(at) as other:
            return await other.get("s1")

    assert asyncio.run(ask()).status == "COMPLETED"
    assert "COMPLETED" in commands.run("show", "s1", REDIS_URL=at).stdout


def test_sentinels_and_the_master_that_they_name_are_reached_over_tls(
    serve: Callable[..., int], watch: Callable[..., int], authority: Authority, commands: Commands
) -> None:
    server, client = authority.issue("server"), authority.issue("client")
    at = url(watch(server, serve(server, clients=True)), authority.ca, client).replace("?", "/mymaster?")
    at = at.replace("rediss:", "rediss+sentinel:")

    async def begun() -> Any:
        async with AsyncSagaClient(at) as one:
            return await one.begin("s1", [do(1)])

    assert asyncio.run(begun()).saga_id == "s1"
    with connect(at) as store:
        assert store.ping()
    done = commands.run("show", "s1", REDIS_URL=at.replace(f"ssl_ca_certs={authority.ca}&", ""))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("Error: the certificate of the broker cannot be trusted: ")
    assert done.stderr.endswith("; name its CA by ssl_ca_certs in REDIS_URL\n")


@pytest.mark.parametrize(
    ("why", "says", "helps"),
    [
        (
            "unknown CA",
            "the certificate of the broker cannot be trusted: ",
            "; name its CA by ssl_ca_certs in REDIS_URL",
        ),
        ("expired", "the certificate of the broker cannot be trusted: certificate has expired", "; renew it"),
        (
            "another host",
            "the certificate of the broker cannot be trusted: IP address mismatch",
            "'127.0.0.1'; name the host in REDIS_URL as the certificate does",
        ),
        ("no certificate of its own", "the broker does not take the certificate of this process", ""),
        ("a certificate of another CA", "the broker does not take the certificate of this process", ""),
    ],
)
def test_who_cannot_be_trusted_ends_every_process_with_the_reason(
    serve: Callable[..., int], authority: Authority, commands: Commands, *, why: str, says: str, helps: str
) -> None:
    other = Authority(commands.folder, "theirs")
    days, host = (-1 if why == "expired" else 2), ("IP:127.0.0.9" if why == "another host" else "IP:127.0.0.1")
    certificate = authority.issue("wrong", days=days, host=host)
    port = serve(certificate, clients="own" in why or "another CA" in why)
    own = other.issue("client") if why == "a certificate of another CA" else None
    at = url(port, None if why == "unknown CA" else authority.ca, own)
    (commands.folder / "shop.py").write_text(SHOP)
    # A certificate of this process is refused after the connection stands, which may look like a lost one at first. So
    # a command that does not wait may tell of that.
    looks = () if "of this process" in says else (("list",), ("doctor",), ("show", "s1"))
    for arguments in (("worker",), ("service", "shop:service"), ("bridge",), *looks):
        done = commands.run(*arguments, REDIS_URL=at)
        assert done.returncode == 1, done
        assert says in done.stderr.splitlines()[-1], done
        assert done.stderr.endswith(f"{helps}\n")
        assert "Traceback" not in done.stderr
        assert "waiting" not in done.stderr or "of this process" in says
    if looks:
        with connect(at) as client, pytest.raises(redis.RedisError) as caught:
            client.ping()
        assert not is_outage(caught.value)
        assert (untrusted(caught.value) or "").startswith(says)


def test_a_url_with_the_wrong_scheme_is_told_as_that(
    serve: Callable[..., int], authority: Authority, commands: Commands
) -> None:
    port, hint = serve(authority.issue("server")), "perhaps the port wants TLS: write rediss for redis in its url"
    for at in (f"127.0.0.1:{port}", f"u:p@127.0.0.1:{port}", f"127.0.0.1:1,127.0.0.1:{port}"):
        hears(f"redis://{at}", hint)
    hears(f"redis+sentinel://127.0.0.1:{port}/m", hint)
    worker = commands.start("worker", env={"REDIS_URL": f"redis://127.0.0.1:{port}"})
    assert worker.stderr is not None
    assert any(hint in line.decode() for line in worker.stderr)
    # A server that has answered wants no TLS. One that refuses the login has answered, too.
    for error, may_want_tls in ((redis.ConnectionError("Connection closed by server."), False),
                                (redis.AuthenticationError("WRONGPASS"), True)):  # fmt: skip
        with pytest.raises(type(error)) as caught, greeting(may_want_tls=may_want_tls):
            raise error
        assert caught.value is error

    hint = "perhaps the port speaks no TLS: write redis for rediss in its url"
    with socket.create_server(("127.0.0.1", 0)) as silent:  # as a server does, until a line has ended
        at = f"rediss://127.0.0.1:{silent.getsockname()[1]}"
        with Broker(at, answer_timeout_s=0.2).client as client, pytest.raises(redis.TimeoutError) as late:
            client.ping()
        assert (is_outage(late.value), hint in told(late.value)) == (True, True)
        hears(f"{at.replace('rediss', 'rediss+sentinel')}/m", hint)


def hears(at: str, hint: str) -> None:
    """Both kinds of clients."""

    async def ask() -> Any:
        async with AsyncSagaClient(at) as client:
            return await client.get("s1")

    for call in (lambda: connect(at).ping(), lambda: asyncio.run(ask())):
        with pytest.raises(redis.RedisError) as caught:
            call()
        assert (is_outage(caught.value), hint in told(caught.value)) == (True, True), caught.value


def test_a_certificate_that_expires_while_a_worker_runs_ends_it_at_its_next_connection(
    serve: Callable[..., int], authority: Authority, commands: Commands
) -> None:
    port = serve(authority.issue("server"))
    worker = commands.start("worker", env={"REDIS_URL": url(port, authority.ca)})
    assert worker.stderr is not None
    assert b"started" in worker.stderr.readline()
    serve.stop()  # type: ignore[attr-defined]
    assert any(b"the broker is away" in line for line in worker.stderr)  # a server that is gone is an outage
    serve(authority.issue("expired", days=-1), port=port)
    said = worker.communicate(timeout=60)[1].decode()
    assert worker.returncode == 1
    assert "certificate has expired" in said.splitlines()[-1]


def test_files_that_cannot_be_used_are_told_in_one_line(authority: Authority, commands: Commands) -> None:
    certificate, key = authority.issue("mine")
    other = authority.issue("other")[1]
    locked = authority.issue("locked")[1]
    authority.lock(locked, "s3cret")
    for options, says in (
        ("ssl_ca_certs=/nowhere.pem", "/nowhere.pem: No such file or directory"),
        (f"ssl_ca_certs={key}", "NO_CERTIFICATE"),
        (f"ssl_certfile={certificate}&ssl_keyfile=/nowhere.key", "No such file or directory"),
        (f"ssl_certfile={certificate}&ssl_keyfile={other}", "KEY_VALUES_MISMATCH"),
        (f"ssl_certfile={certificate}&ssl_keyfile={locked}&ssl_password=wr0ng", "its certificates cannot be used"),
        (f"ssl_certfile={certificate}&ssl_keyfile={locked}", "its certificates cannot be used"),
        ("ssl_ciphers=none-at-all", "its certificates cannot be used"),
    ):
        done = commands.run("worker", REDIS_URL=f"rediss://127.0.0.1:1?{options}")
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done
        assert says in done.stderr
        assert "wr0ng" not in done.stderr


@contextlib.contextmanager
def in_javascript(folder: Path, *urls: str) -> Iterator[list["subprocess.Popen[str]"]]:
    """The sample service in JavaScript, one process for each url."""
    running: list[subprocess.Popen[str]] = []
    try:
        for at in urls:
            env = os.environ | {"REDIS_URL": at}
            running.append(
                subprocess.Popen(["node", "notification.mjs"], cwd=folder, env=env, stderr=subprocess.PIPE, text=True)
            )
        yield running
    finally:
        for process in running:
            process.kill()
            process.communicate()


def test_a_service_in_javascript_works_over_tls_and_so_do_its_own_data(
    serve: Callable[..., int],
    watch: Callable[..., int],
    authority: Authority,
    commands: Commands,
    node_sample: Path,
) -> None:
    server, client = authority.issue("server"), authority.issue("client")
    port = serve(server, clients=True)
    direct = url(port, authority.ca, client)
    named = url(watch(server, port), authority.ca, client).replace("?", "/mymaster?")
    commands.quiet("worker", env={"REDIS_URL": direct})
    sends = do({"to": "a@b", "text": "hi"}, "SendNotification", "notification")
    with SagaClient(direct) as sagas:
        for name, way in (("s1", direct), ("s2", named.replace("rediss:", "rediss+sentinel:"))):
            with in_javascript(node_sample, way):
                sagas.begin(name, [sends])
                assert sagas.wait(name, 60).status == "COMPLETED"
    with connect(direct) as redis_client:
        assert redis_client.hlen("stubs:{notification}:outbox") == 2


def test_a_service_in_javascript_that_cannot_be_trusted_or_does_not_trust_ends_with_the_reason(
    serve: Callable[..., int], watch: Callable[..., int], authority: Authority, tmp_path: Path, node_sample: Path
) -> None:
    other = Authority(tmp_path, "theirs")
    plain = authority.issue("server")
    port, wants = serve(plain), serve(plain, clients=True)
    expired, elsewhere = serve(authority.issue("old", days=-1)), serve(authority.issue("far", host="IP:127.0.0.9"))
    sentinel = url(watch(plain, port), other.ca).replace("?", "/mymaster?").replace("rediss:", "rediss+sentinel:")
    untrusted_, refused = "the certificate of Redis cannot be trusted: ", "Redis does not take the certificate of this"
    cases = {
        url(port, other.ca): (untrusted_, "; name its CA by ssl_ca_certs in REDIS_URL"),
        sentinel: (untrusted_, "; name its CA by ssl_ca_certs in REDIS_URL"),
        url(expired, authority.ca): (untrusted_, "certificate has expired"),
        url(elsewhere, authority.ca): (untrusted_, "; use a name in REDIS_URL that the certificate has"),
        url(wants, authority.ca): (refused, "see ssl_certfile and ssl_keyfile"),
        url(wants, authority.ca, other.issue("client")): (refused, "see ssl_certfile and ssl_keyfile"),
        url(port, authority.ca, (plain[0], other.issue("mine")[1])): ("cannot be used: ", "key values mismatch"),
        url(port, plain[1]): ("REDIS_URL is not usable: its certificates cannot be used: ", str(plain[1])),
    }
    with in_javascript(node_sample, *cases) as running:
        for process, (why, what_to_do) in zip(running, cases.values(), strict=True):
            said = process.communicate(timeout=60)[1]
            assert process.returncode == 1, said
            assert why in said.splitlines()[-1]
            assert what_to_do in said.splitlines()[-1]
            assert "   at " not in said


def test_a_service_in_javascript_says_why_redis_is_away(
    serve: Callable[..., int], authority: Authority, node_sample: Path
) -> None:
    port, nobody = serve(authority.issue("server")), free_port()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        cases = {
            f"redis://127.0.0.1:{nobody}": f"Redis is away (connect ECONNREFUSED 127.0.0.1:{nobody}); waiting",
            f"redis://127.0.0.1:{port}": "; perhaps the port wants TLS: rediss://); waiting",
            f"rediss://127.0.0.1:{silent.getsockname()[1]}": "; perhaps the port speaks no TLS: redis://); waiting",
        }
        with in_javascript(node_sample, *cases) as running:
            for process, hint in zip(running, cases.values(), strict=True):
                assert process.stderr is not None
                assert "started" in process.stderr.readline()
                assert hint in process.stderr.readline()
