"""What each role may do on the server: the one table of the commands that its processes call, and on which keys.

`sagastream acl ROLE` prints it as a line of ACL SETUSER. A script runs with the rights of its caller: its user needs
EVAL and EVALSHA on all of the script's keys and, on each key, the commands that the script calls there.
"""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from sagastream.store import job_names
from sagastream.store.keys import Partition, StoreKeys, copy_of


class Role(StrEnum):
    """What a process does on the store."""

    WORKER = "worker"
    SERVICE = "service"  # a process of a service
    RQ_WORKER = "rq-worker"  # runs the steps of a service that are RQ jobs
    CLIENT = "client"  # begins sagas, looks at them, acts on them
    BEGIN_ONLY = "begin-only"  # begins sagas, waits for them, and can do nothing else
    BRIDGE = "bridge"  # `sagastream bridge`
    INSPECTOR = "inspector"  # looks, and changes nothing
    OPERATOR = "operator"  # looks, and acts on sagas, quarantined messages and commands that nobody reads
    DEPLOYER = "deployer"  # `sagastream deploy`, after `sagastream lint --store`
    DOCTOR = "doctor"  # `sagastream doctor` with --repair and --after-failover


class _Grant(NamedTuple):
    """Commands that a role may call on some keys."""

    places: str  # names of _PLACES, or of copies of streams, with blanks between them
    commands: str  # names of commands, or categories (`@hash`), with blanks between them
    read_only: bool = False  # the server refuses what could write there, and every script that names the key
    onto: str = ""  # places that the commands may also write, and not read
    channels: str = ""  # a pattern of those on which it may publish, and to which it may subscribe


#: The keys that the table names. What belongs to a service is meant of all services if the role is not one service's.
_PLACES: Final[Mapping[str, Callable[[StoreKeys, Partition, str], str]]] = {
    "requests": lambda _, partition, __: partition.requests,
    "interventions": lambda _, partition, __: partition.interventions,
    "replies": lambda _, partition, service: partition.replies(service),
    "commands": lambda _, partition, service: partition.commands(service),
    "saga": lambda _, partition, __: partition.saga("*"),
    "timers": lambda _, partition, __: partition.timers,
    "ended": lambda _, partition, __: partition.ended,
    "events": lambda _, partition, __: partition.events,
    "quarantine": lambda _, partition, __: partition.quarantine,
    "full": lambda _, partition, __: partition.full,
    "begun": lambda _, partition, __: partition.begun,
    "index": lambda _, partition, __: partition.index("*"),
    "indexed": lambda _, partition, __: partition.indexed,
    "aside": lambda _, partition, service: partition.quarantine_of(service),
    "done": lambda _, partition, service: partition.records(service),
    "published": lambda keys, _, service: keys.published(service),
    "services": lambda keys, _, __: keys.services,
    "definitions": lambda keys, _, __: keys.definitions,
    "definition": lambda keys, _, __: keys.definition("*"),
    "samples": lambda keys, _, __: keys.samples,
    "alive": lambda keys, _, __: keys.alive,
    "running": lambda keys, _, __: keys.running,
    "losses": lambda keys, _, __: keys.losses,
    "told": lambda keys, _, __: keys.told,
    "confirm": lambda _, partition, __: partition.confirm,
    "seen": lambda _, partition, __: partition.seen,
    "paused": lambda keys, _, __: keys.paused,
    "operations": lambda keys, _, __: keys.operations,
    "bulks": lambda keys, _, __: keys.bulks,
    "bulks-open": lambda keys, _, __: keys.bulks_open,
    "bulk": lambda keys, _, __: keys.bulk("*"),
    "store": lambda keys, _, __: keys.store,
    "all": lambda keys, _, __: f"{keys.prefix}:*",
    "rq": lambda *_: "rq:*",
    "rq-jobs": lambda *_: "rq:job:saga*",  # steps of sagas; jobs of others may hold what is none of our business
    "rq-queue": lambda *_: "rq:queue:*",
    "rq-queues": lambda *_: "rq:queues",
    "rq-workers": lambda *_: "rq:worker*",
}

#: These need no key. HELLO and AUTH are allowed to everybody. ACL DRYRUN tells a process what its user may not do, so
#: that it does not try (broker/server.py).
_ANYBODY: Final = "ping time info acl|whoami acl|dryrun"
_WRITES: Final = "script|load"
_TRANSACTIONS: Final = "multi exec"
_CONFIRMED: Final = "wait"  # whether a replica has what was begun
_IN_SCRIPTS: Final = "eval evalsha"
#: On a cluster, everybody has to know which node has which slots, and follows a slot that is on the move. …
_FIND_NODES: Final = "cluster|slots cluster|myid asking"
#: … Those who look at the nodes see also which of them are down.
_LOOK_AT_NODES: Final = "cluster|nodes"
_LOOKS_AT_NODES: Final = (Role.INSPECTOR, Role.OPERATOR, Role.DOCTOR)

#: A stream that is read as a consumer of a group.
_GROUP: Final = (
    "type xreadgroup xpending xclaim xautoclaim xack xdel xgroup|create xgroup|delconsumer xinfo|consumers xinfo|groups"
)

#: A place that is there only on a cluster.
_ON_A_CLUSTER: Final = "seen"

#: How a process is heard, and how it notices that the store has lost writes.
_HEARTBEAT: Final = (
    _Grant("alive running", f"{_IN_SCRIPTS} type zadd zrem zcard zscore zrange zrangebyscore hset hdel"),
    _Grant("losses", f"{_IN_SCRIPTS} hsetnx"),
    _Grant(_ON_A_CLUSTER, f"{_IN_SCRIPTS} zadd zremrangebyscore"),
)
_SIGHT: Final = "evalsha_ro eval_ro zscore zrange xinfo|groups"
_WORK: Final = (
    _Grant("store", "hgetall hsetnx"),
    _Grant("requests interventions replies", f"{_GROUP} xrange xinfo|stream"),
    _Grant("requests", "xlen memory|usage"),
    _Grant("full", "set pttl del"),
    _Grant("commands events quarantine", "type xadd"),
    _Grant("commands", "xrange xpending xdel"),
    _Grant("events quarantine", "xdel xlen xtrim memory|usage"),
    _Grant("saga", "exists hgetall hmget hset pexpire persist pttl"),
    _Grant("done", "hmget"),
    _Grant("timers", "type zadd zrem zrangebyscore zscan zscore zcard zmscore"),
    _Grant("ended", "type zadd zrem zrangebyscore zrevrange zscan zcard zmscore"),
    _Grant("begun", "type zadd zrem zscan zcard zmscore"),
    _Grant("index", "type zadd zrem zscan zmscore"),
    _Grant("indexed", "type hget hset hdel hmget"),
    # A script is allowed if one grant has all of its keys.
    _Grant(
        "requests interventions replies commands events quarantine saga timers ended begun index indexed done services "
        "full",
        _IN_SCRIPTS,
    ),
    _Grant("published", "hgetall", read_only=True),
    _Grant("services", "smembers sadd"),
    _Grant("paused", "hgetall", read_only=True),
    _Grant("operations", "xrevrange", read_only=True),
    _Grant("bulks-open", "zrange zrem"),
    _Grant("bulk", "exists hget hgetall hset pexpire xadd"),
    _Grant("bulks-open bulk", _IN_SCRIPTS),
    # A worker that carries out a bulk sends requests as an operator does, and looks for the answers.
    _Grant("interventions", "xadd"),
    _Grant("events", "xread xrevrange"),
    _Grant("begun index", "zcard zcount zrevrangebyscore"),
    _Grant("timers", "zrange"),
    _Grant("told", f"{_IN_SCRIPTS} hset pexpire"),
    *_HEARTBEAT,
    _Grant(f"requests {_ON_A_CLUSTER}", _SIGHT, read_only=True),
)
_SERVE: Final = (
    _Grant("store", "hget hgetall hmget", read_only=True),
    _Grant("commands", f"{_GROUP} xadd"),
    _Grant("done", "type hget hgetall hmget hset hsetnx hexists hincrby expire"),
    _Grant("published", "hgetall hset hsetnx"),
    _Grant("services", "sadd"),
    _Grant("samples", "srem"),
    # No xdel on replies, aside and requests: with it, a script could take back what it has added if it cannot add the
    # rest; but whoever may take that back may also delete what others have added. What stays comes twice, and does no
    # harm.
    _Grant("replies aside", "type xadd"),
    _Grant("commands done replies aside published services", _IN_SCRIPTS),
    *_HEARTBEAT,
    _Grant(f"commands {_ON_A_CLUSTER}", _SIGHT, read_only=True),
)
_BEGIN: Final = (
    _Grant("store", "hgetall", read_only=True),
    _Grant("saga", "hgetall hget", read_only=True),
    _Grant("events", "xread xrevrange", read_only=True),
    _Grant("requests", "xadd"),
    _Grant("full", "get", read_only=True),
    _Grant("definition", "hmget", read_only=True),
    _Grant("requests full saga", _IN_SCRIPTS),
    _Grant("confirm", f"{_IN_SCRIPTS} set"),
)
_DEPLOY: Final = (
    _Grant("store", "hgetall", read_only=True),
    _Grant("definitions", "sadd smembers"),
    _Grant("definition", "hsetnx hset hmget hgetall"),
    _Grant("services", "smembers", read_only=True),
    _Grant("published", "hgetall", read_only=True),
)
_INTERVENE: Final = (_Grant("interventions", f"{_IN_SCRIPTS} xadd"),)
_LOOK: Final = (
    _Grant(
        "all",
        "exists type ttl pttl hget hgetall hmget hlen hexists hvals hscan smembers zcard zcount zrange zrangebyscore "
        "zrevrangebyscore zscore zmscore zscan xlen xrange xrevrange xpending xread xinfo|stream xinfo|groups "
        "xinfo|consumers memory|usage",
        read_only=True,
    ),
    _Grant("full", "get", read_only=True),
    _Grant("rq-jobs", "hmget", read_only=True),
    _Grant("rq-queue", "lindex llen lpos", read_only=True),
    _Grant("rq-queues rq-workers", "exists smembers hmget", read_only=True),
)
_STREAMS: Final = "requests interventions replies commands events quarantine aside"
_COPIES: Final = " ".join(f"{name}:copy" for name in _STREAMS.split())
#: What is erased is taken out of hashes, and streams are written anew without it. Only a copy may take the place of a
#: stream.
_ERASE: Final = (
    _Grant("index", "zrem"),
    _Grant("indexed", f"{_IN_SCRIPTS} hget hset hdel"),
    _Grant("saga done", f"{_IN_SCRIPTS} hget hset"),
    _Grant("events", "xdel"),
    _Grant(f"{_STREAMS} {_COPIES}", f"{_IN_SCRIPTS} exists xinfo|stream xinfo|groups xrange xpending"),
    _Grant(_COPIES, "xadd xlen xtrim xsetid xclaim xgroup|create pexpire persist del"),
    _Grant(_COPIES, "rename", onto=_STREAMS),
)
_OPERATE: Final = (
    *_INTERVENE,
    _Grant("quarantine aside", "xrange xdel"),
    _Grant("requests interventions replies", "xadd"),
    _Grant("commands", "xadd xdel del"),
    _Grant("requests interventions replies commands quarantine aside", _IN_SCRIPTS),
    _Grant("services", "srem"),
    _Grant("paused", f"{_IN_SCRIPTS} hset hdel"),
    _Grant("operations", f"{_IN_SCRIPTS} xadd"),
    _Grant("bulks bulks-open", f"{_IN_SCRIPTS} zadd zrem"),
    _Grant("bulk", f"{_IN_SCRIPTS} hget hset pexpire unlink"),
    _Grant("bulks-open bulk", _IN_SCRIPTS),
    *_ERASE,
)
_MEND: Final = (
    _Grant("requests interventions replies commands", "xgroup|setid"),
    _Grant("saga", "hmget pexpire persist pttl unlink"),
    _Grant("timers ended begun index", "type zadd zrem"),
    _Grant("indexed", "type hget hset hdel hmget"),
    _Grant("events", "type"),
    _Grant("done", "hdel"),
    _Grant("losses told", "del"),
    _Grant("saga timers ended begun index indexed events", _IN_SCRIPTS),
)

#: Which keys RQ uses changes with its versions, so its workers may use all of RQ's keys.
_RUN_JOBS: Final = (
    _Grant("commands", "xrange"),
    _Grant(
        "rq",
        "@hash @list @set @sortedset @stream @string @transaction @pubsub @connection -@dangerous "
        "del unlink exists expire persist rename ttl eval evalsha",
        channels="rq:pubsub:*",
    ),
)
#: … and in each of its queues, a service whose steps run as jobs.
_SEND_JOBS: Final = "@hash @list @set @sortedset @stream @transaction -@dangerous del exists expire persist"

#: What each role may do: without a key, and on which keys.
_ROLES: Final[Mapping[Role, tuple[str, Sequence[_Grant]]]] = {
    Role.WORKER: (f"{_ANYBODY} {_WRITES} {_TRANSACTIONS} scan", _WORK),
    Role.SERVICE: (f"{_ANYBODY} {_WRITES}", _SERVE),
    Role.RQ_WORKER: (f"{_ANYBODY} {_WRITES}", (*_SERVE, *_RUN_JOBS)),
    Role.CLIENT: (f"{_ANYBODY} {_WRITES} {_CONFIRMED}", (*_BEGIN, *_INTERVENE, *_LOOK)),
    Role.BEGIN_ONLY: (f"{_ANYBODY} {_WRITES} {_CONFIRMED}", _BEGIN),
    Role.BRIDGE: (
        f"{_ANYBODY} {_WRITES} {_CONFIRMED}",
        (
            *_BEGIN,
            *_INTERVENE,
            *_LOOK,
            _Grant("losses", f"{_IN_SCRIPTS} hsetnx"),
            _Grant(f"requests {_ON_A_CLUSTER}", _SIGHT, read_only=True),
        ),
    ),
    Role.INSPECTOR: (f"{_ANYBODY} {_TRANSACTIONS} scan", _LOOK),
    Role.OPERATOR: (f"{_ANYBODY} {_WRITES} {_TRANSACTIONS} scan", (*_LOOK, *_OPERATE)),
    Role.DEPLOYER: (_ANYBODY, _DEPLOY),
    Role.DOCTOR: (f"{_ANYBODY} {_WRITES} {_CONFIRMED} {_TRANSACTIONS} scan", (*_LOOK, *_OPERATE, *_BEGIN, *_MEND)),
}


def rules(role: Role, keys: StoreKeys, service: str | None = None, queues: Sequence[str] = ()) -> list[str]:
    """The rules of a user with this role, as ACL SETUSER takes them. They replace all that the user could do before,
    and leave its passwords as they are.

    Args:
        keys: the names of the store's keys, or `patterns` of them.
        service: of a role that belongs to one; the one that a bridge plays.
        queues: the queues of RQ in which a service's steps run.

    Raises ValueError if they do not fit together.
    """
    if service is None and role in (Role.SERVICE, Role.RQ_WORKER):
        raise ValueError(f"the role {role} belongs to one service: name it")
    if service is not None and role not in (Role.SERVICE, Role.RQ_WORKER, Role.BRIDGE):
        raise ValueError(f"the role {role} belongs to no service")
    if queues and role is not Role.SERVICE:
        raise ValueError(f"the role {role} has no queues: only a service sends jobs")
    keyless, grants = _ROLES[role]
    if keys.apart:
        keyless += f" {_FIND_NODES}" + (f" {_LOOK_AT_NODES}" if role in _LOOKS_AT_NODES else "")
    if role is Role.BRIDGE and service is not None:
        grants = (*grants, *_SERVE)
    if not keys.apart:
        grants = [grant for grant in grants if _ON_A_CLUSTER not in grant.places.split()]
    places = {name: place(keys, keys.partitions[0], service or "*") for name, place in _PLACES.items()}
    places |= {f"{name}:copy": copy_of(places[name]) for name in _STREAMS.split()}
    selectors = [_selector(grant, places) for grant in grants]
    if queues:
        own = job_names.patterns(service or "", keys.prefix, divided=keys.tags != ("0",))
        jobs = [f"rq:*:{name}" for name in (*own, *queues)] + ["rq:queues", "rq:worker:*"]
        selectors.append(_selected([f"~{key}" for key in jobs], _SEND_JOBS))
    return ["on", "clearselectors", "resetkeys", "resetchannels", "nocommands", *_allowed(keyless), *selectors]


def patterns(prefix: str, partitions: int, *, cluster: bool = False) -> StoreKeys:
    """The names of a store's keys as patterns of ACL: if there are several partitions, each stands for all of them.
    `cluster`: the store is on one."""
    return StoreKeys(prefix, ["0" if partitions == 1 else "*"], "0" if cluster else None)


def _selector(grant: _Grant, places: Mapping[str, str]) -> str:
    access = "%R~" if grant.read_only else "~"
    keys = [access + places[name] for name in grant.places.split()]
    keys += [f"%W~{places[name]}" for name in grant.onto.split()]
    return _selected([*keys, *([f"&{grant.channels}"] if grant.channels else ())], grant.commands)


def _selected(where: Sequence[str], commands: str) -> str:
    return f"({' '.join((*where, *_allowed(commands)))})"


def _allowed(commands: str) -> list[str]:
    return [name if name.startswith("-") else f"+{name}" for name in commands.split()]
