"""Definitions in the store: deployed, listed, and sagas begun by them."""

import asyncio
import json
from typing import Any

import orjson
import pytest

from sagastream import AsyncSagaClient, Definition, RequestRefused, SagaClient, item
from sagastream.core.definition import parse
from sagastream.errors import DefinitionError, MalformedMessage
from sagastream.store.roles import Role
from sagastream_bridge.definitions.documents import Document
from sagastream_bridge.definitions.known import Offered, in_store
from support.processes import Commands
from support.scenes import Scene
from support.servers import Server
from support.stores import KEYS
from support.users import Users

pytestmark = pytest.mark.both_in_soak


KEY = KEYS.definition("order")


def an_order(version: int = 1, *, service: str = "till", **members: Any) -> Definition:
    order = Definition("order", version=version, **members)
    order.step("Charge", service=service, params={"amount": order.input.total})
    return order


@pytest.fixture
def client(server: Server) -> SagaClient:
    return SagaClient(server.broker())


def test_the_last_one_deployed_is_current(client: SagaClient) -> None:
    assert client.deploy(an_order(), actor="ada") is None
    assert client.definition("order").parsed == an_order().parsed
    newer = an_order(2, service="bank")
    assert client.deploy(newer) == 1
    assert client.deploy(newer) == 2
    assert client.definition("order").parsed == newer.parsed
    assert client.definition("order", 1).parsed == an_order().parsed
    assert client.deploy(an_order()) == 2  # back to the first one
    assert client.definition("order").version == 1


def test_a_version_never_changes(client: SagaClient) -> None:
    client.deploy(an_order(), actor="ada")
    client.deploy(an_order(2))
    with pytest.raises(DefinitionError) as error:
        client.deploy(an_order(service="bank"))
    text = str(error.value)
    assert text.startswith("version 1 of order has other content in the store: it was deployed on 20")
    assert text.endswith("Z by ada; raise the version")
    assert client.definition("order").version == 2
    assert client.definition("order", 1).parsed == an_order().parsed


def test_of_two_deployments_at_once_one_is_refused(client: SagaClient, server: Server) -> None:
    """The other process deploys between the two round trips of the first one."""
    from sagastream.broker import wire
    from sagastream.store import definitions

    exchange = definitions.deploy(KEYS, an_order().parsed, None)
    redis = server.broker().client
    words = exchange.send(wire.round_trip(redis, next(exchange)))
    client.deploy(an_order(service="bank"))
    with pytest.raises(DefinitionError, match="has other content in the store"):
        exchange.send(wire.round_trip(redis, words))
    assert client.definition("order").parsed == an_order(service="bank").parsed


def test_all_are_listed_with_their_versions(client: SagaClient) -> None:
    assert client.definitions() == []
    client.deploy(an_order(10), actor="ada")
    client.deploy(an_order(9), actor="grace")
    client.deploy(Definition.of(parse(an_order().parsed.body | {"name": "a-trip"})))
    trip, order = client.definitions()
    assert (trip.name, trip.current, trip.actor) == ("a-trip", 1, None)
    assert (order.name, order.current, order.actor, order.damaged) == ("order", 9, "grace", [])
    assert [(one.definition.version, one.actor) for one in order.versions] == [(9, "grace"), (10, "ada")]
    assert order.since is not None
    assert order.since >= order.versions[1].deployed_at


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (("trip",), "the store has no definition trip: sagastream deploy FILE brings one"),
        (("order", 7), "the store has no version 7 of the definition order: sagastream definitions lists what it has"),
        (("a b",), "'a b' is not the name of a definition: 1 to 128 of A-Z a-z 0-9 . _ -"),
    ],
)
def test_what_is_not_there_is_said(client: SagaClient, asked: tuple[Any, ...], text: str) -> None:
    client.deploy(an_order(), actor=None)
    with pytest.raises(DefinitionError) as error:
        client.definition(*asked)
    assert str(error.value) == text


@pytest.mark.parametrize(
    "record",
    [
        b"{",
        b"[]",
        b"{}",
        orjson.dumps({"definition": an_order(2).parsed.body, "sha256": an_order(2).parsed.sha256}),
        orjson.dumps({"definition": an_order(service="bank").parsed.body, "sha256": an_order().parsed.sha256}),
        orjson.dumps({"definition": {"name": "order"}, "sha256": "x"}),
    ],
)
def test_what_somebody_else_has_written_is_not_taken_for_a_definition(
    client: SagaClient, server: Server, record: bytes
) -> None:
    client.deploy(an_order(2))
    redis = server.broker().client
    redis.hset(KEY, mapping={"1": record, "current": "1"})
    with pytest.raises(DefinitionError, match="version 1 of order is damaged in the store"):
        client.definition("order")
    (order,) = client.definitions()
    assert (order.current, order.damaged, [one.definition.version for one in order.versions]) == (1, ["1"], [2])
    assert client.deploy(an_order(2)) == 1


def test_a_key_of_another_type_is_refused(client: SagaClient, server: Server) -> None:
    redis = server.broker().client
    redis.sadd(KEYS.definitions, "order", "a b")
    redis.set(KEY, "x")
    for call in (lambda: client.deploy(an_order()), lambda: client.definition("order")):
        with pytest.raises(DefinitionError, match="holds no definition: another program wrote there"):
            call()
    assert client.definitions() == []
    redis.delete(KEY)
    redis.hset(KEY, "current", "x")
    with pytest.raises(DefinitionError, match="'x' of order is current: it is damaged; deploy"):
        client.definition("order")
    for damaged in ("9" * 5000, "١٢", "-1"):
        redis.hset(KEY, "current", damaged)
        assert [one.current for one in client.definitions()] == [None]
        with pytest.raises(DefinitionError, match="is current: it is damaged; deploy order again"):
            client.definition("order")
        assert client.deploy(an_order(2)) is None  # which fixes it
        assert client.definition("order").version == 2


def test_what_cannot_be_right_is_not_deployed(client: SagaClient) -> None:
    schema = {"required": ["total"]}
    for order, text in (
        (an_order(input={"type": "none"}), "the definition: input/type is not a JSON Schema"),
        (an_order(input=schema, example={}), "example: 'total' is a required property"),
    ):
        with pytest.raises(MalformedMessage, match=text):
            client.deploy(order)
    with pytest.raises(MalformedMessage, match="actor must be a text of 1 to 128 characters"):
        client.deploy(an_order(), actor="")
    assert client.definitions() == []


def test_the_event_loop_goes_on_while_an_input_is_checked(server: Server) -> None:
    node: dict[str, Any] = {"allOf": [{"properties": {"in": {"$ref": "#/$defs/node"}}}] * 2}
    order = an_order(input={"properties": {"m": {"$ref": "#/$defs/node"}}, "$defs": {"node": node}})
    data: dict[str, Any] = {}
    for _ in range(40):  # at each level twice: 2 ** 40 checks, if nobody counted
        data = {"in": data}

    async def main() -> tuple[str, int]:
        async with AsyncSagaClient(server.broker()) as client:
            beginning = asyncio.create_task(client.begin(order, {"m": data}, saga_id="order-1"))
            turns = 0
            while not beginning.done():
                await asyncio.sleep(0.01)
                turns += 1
            with pytest.raises(MalformedMessage) as error:
                await beginning
            return str(error.value), turns

    text, turns = asyncio.run(main())
    assert text.startswith("input: to check it by the schema of the definition takes more than 300,000 steps")
    assert turns > 3


async def deployed_and_read(server: Server) -> tuple[Any, ...]:
    async with AsyncSagaClient(server.broker()) as client:
        first = await client.deploy(an_order(), actor="ada")
        accepted = await client.begin(await client.definition("order"), {"total": 5}, saga_id="order-1")
        return first, accepted.begin.definition, await client.definitions()


def test_the_client_of_event_loops_does_the_same(server: Server) -> None:
    first, by, (order,) = asyncio.run(deployed_and_read(server))
    assert (first, by, order.actor) == (None, an_order().parsed.by, "ada")


def test_the_users_of_roles_deploy_and_begin(server: Server) -> None:
    SagaClient(server.broker()).begin("other", [{"transaction": "A", "service": "a"}])  # there is a store
    users = Users(server)
    SagaClient(users.broker(Role.DEPLOYER)).deploy(an_order())
    for role in (Role.BEGIN_ONLY, Role.CLIENT):
        client = SagaClient(users.broker(role))
        client.begin(client.definition("order"), {"total": 5}, saga_id=f"order-of-{role}")
    assert SagaClient(users.broker(Role.INSPECTOR)).definitions()
    assert users.refused() == []


def test_who_deploys_may_ask_the_store_what_is_wrong_before(server: Server) -> None:
    client = server.broker().client
    SagaClient(server.broker()).begin("other", [{"transaction": "A", "service": "a"}])  # there is a store
    client.sadd(KEYS.services, "shop")
    client.hset(KEYS.published("shop"), "Do", "Undo")
    users = Users(server)
    known = in_store(users.broker(Role.DEPLOYER), Document("test", an_order().parsed.body))
    assert known.services == {"shop": Offered({"Do": "Undo"})}
    assert users.refused() == []


# --- sagas


@pytest.fixture
def scene(server: Server) -> Scene:
    return Scene(server.broker())


def requests_of(server: Server) -> list[Any]:
    """The bodies of the requests that no worker has read."""
    found: Any = server.broker().client.xrange(KEYS.partitions[0].requests)
    return [json.loads(fields[b"body"]) for _, fields in found]


def test_a_deployment_changes_no_saga_and_no_begin_that_is_repeated(scene: Scene) -> None:
    client = scene.client
    client.deploy(an_order())
    client.begin(client.definition("order"), {"total": 5}, saga_id="order-1")
    scene.turns_until(lambda: client.get("order-1") is not None)
    newer = an_order(2, service="bank", deadline_ms=5)
    newer.step("Ship", service="shipping")
    client.deploy(newer)
    client.begin(client.definition("order"), {"total": 5.0}, saga_id="order-1")
    with pytest.raises(RequestRefused, match=r"with 5 as input\.total; this request has 6"):
        client.begin(client.definition("order"), {"total": 6}, saga_id="order-1")
    state = client.get("order-1")
    assert state is not None
    assert [step.definition.service for step in state.steps] == ["till"]
    assert state.definition == an_order().parsed.by


def test_two_begins_at_once_by_two_versions_are_one_saga(scene: Scene) -> None:
    """No worker has read the first request when the second one is sent."""
    client = scene.client
    client.begin(an_order(), {"total": 5}, saga_id="order-1")
    client.begin(an_order(2, service="bank"), {"total": 5}, saga_id="order-1")
    scene.turns_until(lambda: client.get("order-1") is not None)
    scene.turns_until(lambda: scene.redis.xlen(KEYS.partitions[0].requests) == 0)
    state = client.get("order-1")
    assert state is not None
    assert state.definition == an_order().parsed.by
    assert scene.redis.xlen(KEYS.partitions[0].quarantine) == 0


# --- the command line


IN_PYTHON = """
from sagastream import Definition

order = Definition("order", version=3)
order.step("Charge", service="bank", params={"amount": order.input.total})
"""


def test_the_command_line_deploys_lists_and_begins(server: Server, commands: Commands) -> None:
    env = {"REDIS_URL": server.url}
    (commands.folder / "order.json").write_text(an_order().json())
    (commands.folder / "newer.json").write_text(an_order(2, service="bank").json())
    (commands.folder / "input.json").write_text('{"total": 7}')

    def said(*arguments: str, code: int = 0, given: str = "") -> str:
        done = commands.run(*arguments, given=given, **env)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout

    assert said("definitions") == ""
    assert said("deploy", "order.json", "--actor", "ada") == "order version 1 is current\n"
    assert said("deploy", "-", given=an_order().json()) == "order version 1 is current already\n"
    assert said("begin", "order", "--input", '{"total": 5}', "--id", "order-1") == "order-1 accepted\n"
    assert said("begin", "order", "--input", "@input.json", "--id", "order-2") == "order-2 accepted\n"
    assert said("begin", "order", "--input", "@-", "--id", "order-3", given='{"total": 8}') == "order-3 accepted\n"
    assert said("deploy", "newer.json") == "order version 2 is current; before, version 1 was\n"
    assert said("begin", "order", "--input", '{"total": 5}', "--id", "order-4").startswith("order-4")
    assert said("begin", "order", "--version", "1", "--id", "order-5").startswith("order-5")
    assert said("begin", "order.json", "--input", '{"total": 9}', "--id", "order-6").startswith("order-6")
    (commands.folder / "shop.py").write_text(IN_PYTHON)
    assert said("deploy", "shop:order") == "order version 3 is current; before, version 2 was\n"
    assert said("begin", "shop:order", "--id", "order-7").startswith("order-7")
    assert said("deploy", "newer.json") == "order version 2 is current; before, version 3 was\n"
    assert said("begin", "order", "--start-at", "2096-12-24T08:00+01:00", "--id", "order-8").startswith("order-8")
    made_up = said("begin", "order")
    assert made_up.startswith("order-")
    assert len(made_up) == len("order-") + 32 + len(" accepted\n")
    found = {}
    for body in requests_of(server):
        assert body.get("start_at_ms") == (4_007_170_800_000 if body["saga_id"] == "order-8" else None)
        found[body["saga_id"]] = (body["definition"]["version"], body["input"], body["steps"][0]["service"])
    assert {name: found[name] for name in found if len(name) < 10} == {
        "order-1": (1, {"total": 5}, "till"),
        "order-2": (1, {"total": 7}, "till"),
        "order-3": (1, {"total": 8}, "till"),
        "order-4": (2, {"total": 5}, "bank"),
        "order-5": (1, {}, "till"),
        "order-6": (1, {"total": 9}, "till"),
        "order-7": (3, {}, "bank"),
        "order-8": (2, {}, "bank"),
    }
    row = said("definitions")
    assert row.startswith("order  version 2 since 20")
    assert row.endswith("; also 1, 3\n")
    (listed,) = map(json.loads, said("definitions", "--json").splitlines())
    assert (listed["name"], listed["current"]) == ("order", 2)
    assert [(one["version"], one["sha256"]) for one in listed["versions"]] == [
        (1, an_order().parsed.sha256),
        (2, an_order(2, service="bank").parsed.sha256),
        (3, an_order(3, service="bank").parsed.sha256),
    ]
    assert listed["versions"][0]["actor"] == "ada"


def test_begin_says_what_differs_from_the_store(scene: Scene, commands: Commands) -> None:
    nobody_is_there = ("no worker is running", "warning: no process of service", "         sagastream cancel")

    def said(*arguments: str) -> tuple[int, str, str]:
        done = commands.run("begin", *arguments, "--input", '{"total": 5}', REDIS_URL=scene.broker.url)
        lines = [line for line in done.stderr.splitlines() if not line.startswith(nobody_is_there)]
        return done.returncode, done.stdout, "\n".join(lines)

    (commands.folder / "order.json").write_text(an_order().json())
    (commands.folder / "other.json").write_text(an_order(service="bank").json())
    assert said("order.json", "--id", "order-1") == (0, "order-1 accepted\n", "")  # none is deployed
    scene.client.deploy(an_order())
    scene.client.deploy(an_order(2))
    assert said("order.json", "--id", "order-2") == (0, "order-2 accepted\n", "")
    code, accepted, differs = said("other.json", "--id", "order-3")
    assert (code, accepted) == (0, "order-3 accepted\n")
    assert differs == (
        "other.json is not what was deployed as version 1 of order: the saga has the steps of other.json; raise the "
        "version, and deploy it"
    )
    scene.turns_until(lambda: scene.client.get("order-1") is not None)
    assert said("order", "--version", "1", "--id", "order-1") == (0, "order-1 was begun before: it is PENDING\n", "")
    stays = "order-1 was begun before: it is PENDING; it began with version 1 of order, and stays with it\n"
    assert said("order", "--id", "order-1") == (0, stays, "")


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("begin", "trip"), 1, "Error: the store has no definition trip: sagastream deploy FILE brings one\n"),
        (("begin", "a b"), 2, "Error: 'a b' is neither a file nor the name of a definition\n"),
        (("begin", "nosuch.json"), 2, "Error: nosuch.json: No such file or directory\n"),
        (("begin", "order", "--input", "{"), 2, "Error: --input: not JSON: "),
        (("deploy", "nosuch.json"), 2, "Error: nosuch.json: No such file or directory\n"),
        (("deploy", "."), 2, "Error: .: Is a directory\n"),
        (("begin", "json:nosuch"), 2, "Error: json has no nosuch\n"),
        (("signal", "order-1", "go", "--payload", "@nosuch"), 2, "Error: nosuch: No such file or directory\n"),
        (("signal", "order-1", "go", "--payload", "@"), 2, "Error: --payload: the name of a file is missing behind @"),
        (("begin", "order", "--input", "@nosuch"), 2, "Error: nosuch: No such file or directory\n"),
        (("begin", "order", "--input", "[]"), 1, "Error: input must be an object, which the steps can refer to, not "),
        (("begin", "order", "--version", "0"), 2, "Error: Invalid value for '--version'"),
        (("begin", "order", "--version", "5"), 1, "Error: the store has no version 5 of the definition order"),
        (("begin", "order", "--start-at", "tomorrow"), 2, "Error: --start-at: 'tomorrow' is not a time like 2026-"),
        (("begin", "order", "--start-at", "2026-12-24"), 2, "Error: --start-at: 2026-12-24 has no time zone: write it"),
        (("begin", "order", "--id", "a b"), 1, "Error: the saga: saga_id must be 1 to 128 characters"),
        (
            ("begin", "saga.json", "--input", "{}"),
            2,
            "Error: --input does not go with saga.json, which holds a saga with its id\n",
        ),
        (
            ("begin", "order.json", "--version", "1"),
            2,
            "Error: --version does not go with order.json, which holds one version of a definition\n",
        ),
        (("begin", "nosuch:order"), 2, "Error: cannot import nosuch: No module named 'nosuch'; run it where"),
        (("deploy", "json:loads"), 1, "Error: json:loads is not a sagastream.Definition\n"),
        (
            ("deploy", "saga.json"),
            1,
            "Error: saga.json: it is a saga, not a definition: a definition has a name and a ",
        ),
        (("deploy", "other.json"), 1, "Error: version 1 of order has other content in the store: "),
        (
            ("deploy", "order.json", "--actor", ""),
            2,
            "Error: --actor must be a text of 1 to 128 characters: it stays with the version\n",
        ),
        (("deploy", "schema.json"), 1, "Error: schema.json: input/type is not a JSON Schema: 'x' is not "),
    ],
)
def test_what_the_command_line_refuses(
    server: Server, commands: Commands, arguments: tuple[str, ...], code: int, text: str
) -> None:
    saga = {"saga_id": "s", "steps": [{"transaction": "A", "service": "a"}]}
    (commands.folder / "saga.json").write_text(json.dumps(saga))
    (commands.folder / "order.json").write_text(an_order().json())
    (commands.folder / "schema.json").write_text(json.dumps(json.loads(an_order().json()) | {"input": {"type": "x"}}))
    (commands.folder / "other.json").write_text(an_order(service="bank").json())
    SagaClient(server.broker()).deploy(an_order())
    done = commands.run(*arguments, REDIS_URL=server.url)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert text in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("Error")]) == 1


def test_a_saga_of_a_definition_has_one_step_for_each_item(server: Server) -> None:
    client = SagaClient(server.broker())
    order = Definition("order", version=1)
    order.step("Pick", service="stock", id="pick", each=order.input.items, params=item.sku)
    client.deploy(order)
    with pytest.raises(MalformedMessage, match="step 1: each: /input/items is not a list but a number"):
        client.begin(client.definition("order"), {"items": 5}, saga_id="order-1")
    client.begin(client.definition("order"), {"items": [{"sku": "a"}, {"sku": "b"}]}, saga_id="order-1")
    (body,) = requests_of(server)
    assert [step["id"] for step in body["steps"]] == ["pick.0", "pick.1"]
