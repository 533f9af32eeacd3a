"""What a user of each role cannot do, asked of the servers themselves: ACL DRYRUN says what they would refuse."""

from collections.abc import Sequence
from typing import Any, Final

import pytest
import redis

from sagastream.broker.connection import connect
from sagastream.store.keys import copy_of
from sagastream.store.roles import Role
from support.servers import Server
from support.stores import KEYS, ONLY
from support.users import Users

#: The service of a service's user; and one whose name begins like it.
MINE, OTHER = "till", "till.eu"
#: The streams that others use too.
STREAMS: Final = (
    *(ONLY.requests, ONLY.interventions, ONLY.events, ONLY.quarantine),
    *(ONLY.commands(OTHER), ONLY.replies(OTHER), ONLY.quarantine_of(OTHER)),
)

#: What one may try, by its name: the commands, of which each is asked for. The oracle of this file: it knows nothing of
#: the table in store/roles.py.
TRIES: Final[dict[str, Sequence[Sequence[str]]]] = {
    "read sagas": [["HGETALL", ONLY.saga("s")]],
    "write sagas": [["HSET", ONLY.saga("s"), "status", "COMPLETED"]],
    "delete sagas": [["UNLINK", ONLY.saga("s")]],
    "begin": [["XADD", ONLY.requests, "*", "body", "{}"]],
    "take back begins": [["XDEL", ONLY.requests, "1-1"]],
    "read begins": [["XRANGE", ONLY.requests, "-", "+"]],
    "take begins": [
        ["XREADGROUP", "GROUP", "orchestrator", "me", "STREAMS", ONLY.requests, ">"],
        ["XACK", ONLY.requests, "orchestrator", "1-1"],
    ],
    "intervene": [["XADD", ONLY.interventions, "*", "body", "{}"]],
    "take interventions": [["XDEL", ONLY.interventions, "1-1"], ["XAUTOCLAIM", ONLY.interventions, "g", "c", "0", "0"]],
    "command": [["XADD", ONLY.commands(MINE), "*", "body", "{}"]],
    "command others": [["XADD", ONLY.commands(OTHER), "*", "body", "{}"]],
    "read commands": [["XRANGE", ONLY.commands(MINE), "-", "+"]],
    "read commands of others": [["XRANGE", ONLY.commands(OTHER), "-", "+"]],
    "take commands": [["XREADGROUP", "GROUP", MINE, "me", "STREAMS", ONLY.commands(MINE), ">"]],
    "take commands of others": [
        ["XREADGROUP", "GROUP", OTHER, "me", "STREAMS", ONLY.commands(OTHER), ">"],
        ["XACK", ONLY.commands(OTHER), OTHER, "1-1"],
        ["XCLAIM", ONLY.commands(OTHER), OTHER, "me", "0", "1-1"],
    ],
    "delete commands": [["XDEL", ONLY.commands(MINE), "1-1"]],
    "delete commands of others": [["XDEL", ONLY.commands(OTHER), "1-1"]],
    "answer": [["XADD", ONLY.replies(MINE), "*", "body", "{}"]],
    "answer for others": [["XADD", ONLY.replies(OTHER), "*", "body", "{}"]],
    "read replies": [["XRANGE", ONLY.replies(MINE), "-", "+"]],
    "take back answers": [["XDEL", ONLY.replies(MINE), "1-1"]],
    "take back what it set aside": [["XDEL", ONLY.quarantine_of(MINE), "1-1"]],
    "take replies": [
        ["XDEL", ONLY.replies(OTHER), "1-1"],
        ["XREADGROUP", "GROUP", "orchestrator", "me", "STREAMS", ONLY.replies(OTHER), ">"],
    ],
    "write records": [["HSET", f"{ONLY.base}done:{MINE}:4", "f", "v"]],
    "let records expire": [["EXPIRE", f"{ONLY.base}done:{MINE}:4", "1"]],
    "delete records": [["HDEL", f"{ONLY.base}done:{MINE}:4", "f"]],
    "read records of others": [["HGETALL", f"{ONLY.base}done:{OTHER}:4"]],
    "write records of others": [["HSET", f"{ONLY.base}done:{OTHER}:4", "f", "v"]],
    "set aside": [["XADD", ONLY.quarantine_of(MINE), "*", "body", "{}"]],
    "set aside for others": [["XADD", ONLY.quarantine_of(OTHER), "*", "body", "{}"]],
    "set aside for workers": [["XADD", ONLY.quarantine, "*", "body", "{}"]],
    "read what was set aside": [
        ["XREVRANGE", ONLY.quarantine, "+", "-"],
        ["XRANGE", ONLY.quarantine_of(MINE), "-", "+"],
    ],
    "take back what workers set aside": [["XDEL", ONLY.quarantine, "1-1"]],
    "drop what others set aside": [["XDEL", ONLY.quarantine_of(OTHER), "1-1"]],
    "publish": [["HSET", KEYS.published(MINE), "Do", "Undo"]],
    "publish for others": [["HSET", KEYS.published(OTHER), "Do", "Undo"]],
    "read what is published": [["HGETALL", KEYS.published(OTHER)]],
    "read definitions": [["HMGET", KEYS.definition("order"), "current", "3"]],
    "list definitions": [["SMEMBERS", KEYS.definitions], ["HGETALL", KEYS.definition("order")]],
    "deploy": [
        ["SADD", KEYS.definitions, "order"],
        ["HSETNX", KEYS.definition("order"), "3", "{}"],
        ["HSET", KEYS.definition("order"), "current", "3"],
    ],
    "name services": [["SADD", KEYS.services, "x"]],
    "unname services": [["SREM", KEYS.services, "x"]],
    "read the layout": [["HGETALL", KEYS.store]],
    "make the store": [["HSETNX", KEYS.store, "partitions", "2"]],
    "beat": [["ZADD", KEYS.alive, "1", "x"], ["HSET", KEYS.running, "x", "y"]],
    "begin bulks": [["ZADD", KEYS.bulks, "1", "b"], ["ZADD", KEYS.bulks_open, "1", "b"]],
    "write bulks": [["HSET", KEYS.bulk("b"), "state", "x"], ["PEXPIRE", KEYS.bulk("b"), "1"]],
    "note results of bulks": [["XADD", KEYS.bulk_results("b"), "*", "done", "s"]],
    "read bulks": [["HGETALL", KEYS.bulk("b")], ["ZRANGE", KEYS.bulks_open, "0", "-1"]],
    "forget bulks": [["UNLINK", KEYS.bulk("b"), KEYS.bulk_results("b")]],
    "note losses": [["HSETNX", KEYS.losses, "x", "y"]],
    "settle losses": [["DEL", KEYS.losses]],
    "move timers": [["ZADD", ONLY.timers, "1", "s"], ["ZREM", ONLY.timers, "s"], ["ZADD", ONLY.ended, "1", "s"]],
    "read timers": [["ZRANGEBYSCORE", ONLY.timers, "0", "1"]],
    "tell events": [["XADD", ONLY.events, "*", "type", "x"]],
    "take back events": [["XDEL", ONLY.events, "1-1"]],
    "put a copy in the place of a stream": [
        *(["XSETID", copy_of(name), "1-1"] for name in STREAMS),
        *(["RENAME", copy_of(name), name] for name in STREAMS),
    ],
    "follow events": [["XREAD", "STREAMS", ONLY.events, "0"]],
    "set groups": [["XGROUP", "SETID", ONLY.commands(MINE), MINE, "0"]],
    "count keys": [["SCAN", "0"]],
    "use keys of RQ": [["LPUSH", "rq:queue:q", "x"], ["EVAL", "return 1", "1", "rq:x"]],
    "look at steps on RQ": [["HMGET", "rq:job:saga-till-s1-1-transaction", "y"], ["LPOS", "rq:queue:q", "x"]],
    "read jobs of others": [["HMGET", "rq:job:x", "y"], ["HGETALL", "rq:job:x"]],
    # … and what nobody may do:
    "change the layout": [["HSET", KEYS.store, "partitions", "2"], ["DEL", KEYS.store], ["EXPIRE", KEYS.store, "1"]],
    "destroy streams": [
        *(["DEL", name] for name in (ONLY.requests, ONLY.interventions, ONLY.replies(MINE), ONLY.events)),
        *(["XTRIM", name, "MAXLEN", "0"] for name in (ONLY.requests, ONLY.commands(MINE), ONLY.replies(MINE))),
        *(["XSETID", name, "9-9"] for name in (ONLY.requests, ONLY.commands(MINE), ONLY.replies(MINE))),
        *(["XGROUP", "DESTROY", name, "orchestrator"] for name in (ONLY.requests, ONLY.replies(MINE))),
        ["XGROUP", "DESTROY", ONLY.commands(OTHER), OTHER],
        ["RENAME", ONLY.commands(MINE), ONLY.commands(OTHER)],
        *(["RENAME", name, copy_of(name)] for name in STREAMS),
        ["RENAME", copy_of(ONLY.events), KEYS.store],
        ["RENAME", copy_of(ONLY.events), ONLY.saga("s")],
        ["COPY", ONLY.replies(MINE), ONLY.replies(OTHER)],
        ["RESTORE", ONLY.requests, "0", "x"],
        ["DEL", KEYS.alive],
        ["DEL", KEYS.services],
        ["DEL", ONLY.timers],
    ],
    "read another store": [["HGETALL", "shop:{0}:saga:s"], ["XADD", "shop:{0}:requests", "*", "a", "b"]],
    "use keys of others": [["GET", "app"], ["SET", "app", "x"], ["DEL", "app"], ["EVAL", "return 1", "1", "app"]],
    "publish and subscribe": [["PUBLISH", "news", "x"], ["SUBSCRIBE", "news"], ["PSUBSCRIBE", "*"]],
    "sort by keys of others": [["SORT", ONLY.timers, "BY", "app*"]],
}

_SERVICE: Final = (
    "take commands, delete commands, command, answer, set aside, publish, name services, read the layout, "
    "write records, let records expire, beat, note losses"
)
_BEGINS: Final = "begin, read sagas, follow events, read the layout, read definitions"
_ERASES: Final = (
    "write sagas, write records, write records of others, take back events, put a copy in the place of a stream"
)
_LOOKS: Final = (
    "read sagas, read begins, read commands, read commands of others, read replies, read records of others, "
    "read what was set aside, read what is published, read the layout, read timers, follow events, "
    "look at steps on RQ, read definitions, list definitions, read bulks"
)
#: What each role may do of that; all else must be refused to it.
MAY: Final[dict[Role, str]] = {
    Role.WORKER: "count keys, intervene, follow events, write bulks, note results of bulks, read bulks, "
    "read sagas, write sagas, take begins, take back begins, read begins, take interventions, command, "
    "command others, take back answers, take back what workers set aside, "
    "read commands, read commands of others, delete commands, delete commands of others, "
    "take replies, read replies, set aside for workers, read what is published, name services, read the layout, "
    "make the store, beat, note losses, move timers, read timers, tell events, take back events",
    Role.SERVICE: _SERVICE,
    Role.RQ_WORKER: f"{_SERVICE}, read commands, use keys of RQ, look at steps on RQ, read jobs of others",
    Role.CLIENT: f"{_BEGINS}, {_LOOKS}, intervene",
    Role.BEGIN_ONLY: _BEGINS,
    Role.BRIDGE: f"{_BEGINS}, {_LOOKS}, intervene, note losses",
    Role.INSPECTOR: f"{_LOOKS}, count keys",
    Role.OPERATOR: f"{_LOOKS}, {_ERASES}, count keys, begin, intervene, command, command others, "
    "answer, answer for others, "
    "take back what workers set aside, take back what it set aside, drop what others set aside, "
    "delete commands, delete commands of others, unname services, begin bulks, write bulks, forget bulks",
    Role.DEPLOYER: "deploy, read definitions, list definitions, read the layout, read what is published",
    Role.DOCTOR: f"{_LOOKS}, {_ERASES}, count keys, begin, intervene, command, command others, "
    "answer, answer for others, "
    "take back what workers set aside, take back what it set aside, drop what others set aside, "
    "delete commands, delete commands of others, unname services, delete sagas, "
    "begin bulks, write bulks, forget bulks, "
    "delete records, settle losses, move timers, set groups",
}
#: Of the commands that a server calls dangerous, these are allowed: they tell what the server is like.
DANGEROUS: Final = {"info"}


def service_of(role: Role) -> str | None:
    return MINE if role in (Role.SERVICE, Role.RQ_WORKER) else None


def allows(admin: Any, user: str, command: Sequence[str]) -> bool:
    return bool(admin.execute_command("ACL", "DRYRUN", user, *command) == b"OK")


@pytest.mark.parametrize("role", Role)
def test_a_role_may_do_what_it_is_for_and_nothing_else(server: Server, role: Role) -> None:
    admin = server.broker().client
    Users(server).url(role, service_of(role))
    may = set(MAY[role].replace("\n", " ").split(", "))
    assert may <= TRIES.keys()
    user = service_of(role) or str(role)
    for what, commands in TRIES.items():
        for command in commands:
            assert allows(admin, user, command) == (what in may), (role, what, command)


def commands_of(admin: Any, category: str) -> list[tuple[str, int]]:
    """The commands of a category, each with how many words it takes."""
    names: Any = [name.decode() for name in admin.execute_command("ACL", "CAT", category)]
    found = []
    for name in names:
        [about] = admin.execute_command("COMMAND", "INFO", name)
        if isinstance(about, list):
            found.append((name, abs(int(about[1]))))
        elif isinstance(about, dict):
            found.append((name, abs(int(about["arity"]))))
    return found


@pytest.mark.parametrize("role", Role)
def test_no_role_may_call_what_the_server_calls_dangerous(server: Server, role: Role) -> None:
    with connect(server.url) as admin:
        Users(server).url(role, service_of(role))
        user = service_of(role) or str(role)
        admin.response_callbacks.clear()
        names = commands_of(admin, "dangerous") + commands_of(admin, "admin")
        assert len(names) > 50
        allowed = set()
        for name, words in names:
            first, *second = name.split("|")
            call = [first, *second, *["1"] * (words - 1 - len(second))]
            answer = admin.execute_command("ACL", "DRYRUN", user, *call)
            if answer == b"OK":
                allowed.add(name)
    assert allowed <= DANGEROUS | {"acl|dryrun"}
    assert "acl|setuser" in dict(names)
    assert "config|get" in dict(names)


@pytest.mark.parametrize("role", [Role.SERVICE, Role.CLIENT, Role.BEGIN_ONLY])
def test_a_script_can_do_no_more_than_its_user(server: Server, role: Role) -> None:
    users = Users(server)
    client = users.client(role, service_of(role))
    keys = [ONLY.commands(MINE), ONLY.replies(MINE)] if role is Role.SERVICE else [ONLY.requests, ONLY.saga("s")]
    for script in (
        "return redis.call('DEL', KEYS[1])",
        "return redis.call('XTRIM', KEYS[1], 'MAXLEN', '0')",
        "return redis.call('XDEL', KEYS[2], '1-1')",
        "return redis.call('HSET', KEYS[2], 'status', 'COMPLETED')",
        "return redis.call('FLUSHALL')",
        "return redis.call('XADD', 'saga:{0}:replies:till.eu', '*', 'body', '{}')",
        "return redis.call('CONFIG', 'GET', 'requirepass')",
    ):
        with pytest.raises(redis.ResponseError, match=r"permission|can't (?:run|access)|ACL failure|not allowed"):
            client.eval(script, 2, *keys)
    client.close()


def test_the_names_of_the_command_line_are_those_of_the_table() -> None:
    from sagastream_bridge.commands.acl import ROLES

    assert tuple(Role) == ROLES
