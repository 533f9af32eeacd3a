"""Metrics of real processes, as Prometheus would scrape them."""

import socket
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sagastream.client.blocking import SagaClient
from sagastream.metrics import catalogue
from sagastream.store.roles import Role
from support.processes import SAMPLES, Commands
from support.scenes import Scene, do
from support.servers import OwnServer, Server, free_port
from support.stores import ONLY
from support.users import Users
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def series(text: str) -> Series:
    """Each series, as Prometheus reads it."""
    families = list(text_string_to_metric_families(text))
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


def scrape(port: int) -> Series:
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        return series(answer.read().decode())


def value(found: Series, name: str, **labels: str) -> float | None:
    return found.get((name, frozenset(labels.items())))


def named(found: Series) -> set[str]:
    return {name for name, _ in found if name.startswith("sagastream_")}


def is_told(port: int) -> bool:
    try:
        return bool(scrape(port))
    except OSError:
        return False


def test_a_worker_a_service_and_the_store_tell_what_a_saga_did(server: Server, commands: Commands) -> None:
    ports = [free_port() for _ in range(3)]
    env = {"REDIS_URL": server.url}
    commands.quiet("worker", "--metrics-port", str(ports[0]), env=env)
    commands.quiet("service", SAMPLES[0], "--metrics-port", str(ports[1]), env=env)
    commands.quiet("metrics", "--port", str(ports[2]), env=env)
    for port in ports:
        until(lambda port=port: is_told(port), what="it tells")  # type: ignore[misc]
    client = SagaClient(server.broker())
    client.begin("s1", [do({"sku": "a", "quantity": 1}, "ReserveInventory", service="inventory")])
    client.wait("s1", timeout_s=60)
    client.begin("s2", [do(1, service="nobody")])
    # A change is counted a moment after it can be seen.
    until(lambda: value(scrape(ports[0]), "sagastream_sagas_begun_total", definition="") == 2, what="both have begun")

    worker = scrape(ports[0])
    assert value(worker, "sagastream_saga_duration_seconds_count", definition="", outcome="completed") == 1
    step = {"service": "inventory", "command": "ReserveInventory", "direction": "transaction", "outcome": "ok"}
    assert value(worker, "sagastream_step_duration_seconds_count", **step) == 1
    assert (value(worker, "sagastream_commit_sagas_sum") or 0) >= 3
    assert value(worker, "sagastream_broker_away") == 0
    assert (value(worker, "process_cpu_seconds_total") or 0) > 0

    def counted() -> bool:  # the answer was sent a moment before the call was counted
        return value(scrape(ports[1]), "sagastream_handler_duration_seconds_count", **step) == 1

    until(counted, what="the call of the handler is counted")
    assert value(scrape(ports[1]), "sagastream_commands_in_flight", service="inventory") == 0

    def looked() -> Series | None:  # they are read again after 5 s
        found = scrape(ports[2])
        return found if value(found, "sagastream_store_commands", service="nobody", state="unread") == 1 else None

    store = until(looked, what="the store's figures are read again")
    assert value(store, "sagastream_store_live_sagas", status="PENDING") == 1
    assert value(store, "sagastream_store_processes", kind="service", service="inventory") == 1
    assert value(store, "sagastream_store_processes", kind="worker", service="") == 1
    assert value(store, "sagastream_store_up") == 1

    # Whatever they tell stands in the catalogue, and no label holds the id of a saga.
    all_series = frozenset().union(*(metric.series for metric in catalogue.ALL.values()))
    found = {**worker, **store, **scrape(ports[1])}
    assert {name.removesuffix("_created") for name in named(found)} <= all_series
    assert not {text for _, labels in found for _, text in labels} & {"s1", "s2"}


def test_figures_once_and_all_of_them(server: Server, commands: Commands) -> None:
    scene = Scene(server.broker())
    scene.begin("parked", do(1, compensation="Nope", compensation_attempts=1), do("fail"))
    scene.play("parked")
    scene.redis.config_set("maxmemory", "500mb")
    scene.client.pause("work", "Undo", reason="the till is being moved")
    done = commands.run("metrics", "--once", REDIS_URL=server.url)
    assert done.returncode == 0, done.stderr
    found = series(done.stdout)
    assert value(found, "sagastream_store_parked_sagas", service="work", command="Nope") == 1
    assert value(found, "sagastream_store_memory_limit_bytes") == 500 << 20
    assert (value(found, "sagastream_store_paused_seconds", service="work", command="Undo") or 0) > 0
    assert value(found, "sagastream_store_held_sagas", service="work") == 0
    of_store = {name for name in catalogue.ALL if name.startswith("sagastream_store_")}
    assert of_store <= named(found)


def test_many_services_are_told_in_bounded_series(server: Server, commands: Commands) -> None:
    client = server.broker().client
    names = [f"s{number:03}" for number in range(250)]
    client.sadd("saga:services", *names)
    for name in names:
        client.xadd(ONLY.commands(name), {"body": "x"})
    found = series(commands.run("metrics", "--once", REDIS_URL=server.url).stdout)
    unread = {labels: number for (name, labels), number in found.items() if name == "sagastream_store_commands"}
    of_services = {dict(labels)["service"] for labels in unread}
    assert len(of_services) <= 201
    assert sum(unread.values()) == 250
    assert value(found, "sagastream_store_commands", service="other", state="unread") == 250 - len(of_services) + 1


@pytest.mark.own_server
def test_a_store_that_is_away_is_told_as_down(server: OwnServer, commands: Commands) -> None:
    port = free_port()
    server.kill()
    once = commands.run("metrics", "--once", REDIS_URL=server.url)
    assert (once.returncode, once.stdout, once.stderr.count("\n")) == (1, "", 1), once.stderr
    process = commands.start("metrics", "--port", str(port), env={"REDIS_URL": server.url}, stderr=-1)
    until(lambda: is_told(port) and value(scrape(port), "sagastream_store_up") == 0, what="it tells that it waits")
    server.start()
    until(lambda: value(scrape(port), "sagastream_store_up") == 1, what="it tells")
    assert value(scrape(port), "sagastream_broker_away") == 0
    server.kill()
    until(lambda: value(scrape(port), "sagastream_store_up") == 0, what="it tells that it cannot read")
    found = scrape(port)
    assert (value(found, "sagastream_broker_away"), value(found, "sagastream_broker_outages_total")) == (1, 2)
    server.start()
    until(lambda: value(scrape(port), "sagastream_store_up") == 1, what="it tells again")
    assert value(scrape(port), "sagastream_broker_away") == 0
    process.terminate()
    _, said = process.communicate(timeout=60)
    lines = [line.partition("sagastream metrics: ")[2][:22] for line in said.decode().splitlines()]
    assert lines == ["the broker is away (Er", "the broker is back"] * 2, said


def test_figures_that_the_user_may_not_read_are_an_error(server: Server, commands: Commands) -> None:
    url = Users(server).url(Role.BEGIN_ONLY)
    done = commands.run("metrics", "--once", REDIS_URL=url)
    told = "Error: the user in REDIS_URL may not read the figures of the store; sagastream acl inspector prints one "
    assert (done.returncode, done.stdout, done.stderr[: len(told)]) == (1, "", told)
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("worker",), ("service", SAMPLES[0]), ("up",), ("bridge",), ("metrics",)])
def test_a_port_in_use_is_one_line(server: Server, commands: Commands, command: tuple[str, ...]) -> None:
    option = "--port" if command == ("metrics",) else "--metrics-port"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = commands.run(*command, option, port, REDIS_URL=server.url)
    assert done.returncode == 1
    whose = " of store" if command == ("up",) else ""
    text = f"the metrics{whose} cannot be told at 127.0.0.1, port {port}: Address already in use; choose another port"
    assert f"Error: {text}\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_wrong_usage_is_told(commands: Commands) -> None:
    for options in ([], ["--once", "--port", "1"]):
        done = commands.run("metrics", *options)
        assert (done.returncode, "give either --once or --port N" in done.stderr) == (2, True)
    done = commands.run("worker", "--metrics-host", "127.0.0.1")
    assert (done.returncode, "--metrics-host needs --metrics-port N" in done.stderr) == (2, True)
    done = commands.run("up", "--metrics-port", "65532")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the ports up to 65536 are needed" in " ".join(done.stderr.split())
    assert not commands.home.exists()


def ports_in_a_row(number: int) -> int:
    """The first of so many ports that nobody listens on."""

    def first() -> int | None:
        start = free_port()
        try:
            for port in range(start, start + number):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return None
        return start

    return until(first, what="ports in a row are free")


def test_up_tells_of_the_store_and_of_each_process_steps_on_rq_too(server: Server, commands: Commands) -> None:
    first = ports_in_a_row(4)
    told = commands.start(
        *("up", "--service", "sagastream_stubs.shipping:on_rq", "--metrics-port", str(first)),
        env={"REDIS_URL": server.url, "PYTHONUNBUFFERED": "1"},
        stderr=-3,
    )
    assert told.stdout is not None
    lines = [told.stdout.readline().decode() for _ in range(6)]
    names = ["store", "worker-1", "sagastream_stubs.shipping-on_rq", "sagastream_stubs.shipping-on_rq-rq"]
    assert lines[2:] == [f"metrics  http://127.0.0.1:{first + n}/metrics  {name}\n" for n, name in enumerate(names)]
    client = SagaClient(server.broker())
    client.begin("s1", [do({"order_id": "o-1"}, "CreateShipment", service="shipping")])
    client.wait("s1", timeout_s=100)
    command = {"service": "shipping", "command": "CreateShipment", "direction": "transaction", "outcome": "ok"}
    name = "sagastream_handler_duration_seconds_count"
    until(lambda: value(scrape(first + 3), name, **command) == 1, what="its job is counted")
    assert value(scrape(first + 2), name, **command) is None
    assert value(scrape(first + 1), "sagastream_step_duration_seconds_count", **command) == 1
    assert value(scrape(first), "sagastream_store_up") == 1
