"""Examines what takes the place of the server if it dies: its replicas, and the Sentinels that REDIS_URL names."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec
import redis

from sagastream.broker import sentinel, urls
from sagastream.broker.connection import Broker
from sagastream.broker.sentinel import Ask
from sagastream.broker.urls import Address
from sagastream.console import describe
from sagastream_bridge.inspection.findings import Finding, ok, problem, warning

#: A replica says about once a second how far it is. One that has been silent for longer is not counted on, in seconds;
#: that is also the usual min-replicas-max-lag.
_HEARD_WITHIN_S: Final = 10
#: If one of fewer Sentinels dies, the others are no majority, and make no replica the master.
_FEWEST_SENTINELS: Final = 3
_FENCE: Final = (
    "set min-replicas-to-write 1 and min-replicas-max-lag 10 on it and on its replicas",
    "then a master that is cut off from all of its replicas takes no writes",
    "if there is only one replica, writes stop while that is away: have two",
)


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What a Sentinel says of the master."""

    master: Address | None = None
    sentinels: int = 0  # that watch it, as far as this one knows
    quorum: int = 0  # how many of them must find that it is down
    trouble: str = ""  # what it does not tell, and why; or what it says against the master
    cannot_act: str = ""  # why no replica would become the master if it died now


def examine(broker: Broker, info: Mapping[str, Any]) -> Iterator[Finding]:
    """`info`: what the server answers to INFO."""
    watched = urls.names_sentinels(broker.url)
    yield from of_replicas(info, watched=watched)
    if watched:
        named = urls.sentinels(broker.url)
        yield from of_sentinels({one: asked(url, named.master) for one, url in named.sentinels.items()})


def of_replicas(info: Mapping[str, Any], *, watched: bool) -> Iterator[Finding]:
    """`watched`: by Sentinels, which would make a replica the master."""
    replicas = [replica for name, replica in info.items() if name.startswith("slave") and isinstance(replica, dict)]
    in_step = []
    for replica in replicas:
        address = Address(replica["ip"], int(replica["port"]))
        behind = max(0, int(info["master_repl_offset"]) - int(replica["offset"]))
        state, silent_s = str(replica["state"]), int(replica.get("lag", 0))
        if state != "online":
            yield warning("replicas", f"{address} has not all of the data yet: {state}")
        elif silent_s > _HEARD_WITHIN_S:
            yield warning("replicas", f"{address} was not heard for {silent_s} s, and is {behind} bytes behind")
        else:
            in_step.append(f"{address}, {behind} bytes behind")
    if in_step:
        yield ok("replicas", f"in step: {'; '.join(in_step)}")
    elif watched:
        yield problem(
            "replicas", "none is in step: if the master dies, nothing takes its place", "look at its replicas"
        )
    if replicas and "min_slaves_good_slaves" not in info:  # INFO has it if the server wants replicas
        text = "min-replicas-to-write is 0: after a failover, the former master may still take writes, which are lost"
        yield warning("replicas", text, *_FENCE)
    elif len(replicas) == 1:
        text = "there is only one, and min-replicas-to-write is set: while that one is away, and after it has become"
        yield warning("replicas", f"{text} the master, no writes are taken", "add a second replica")


def of_sentinels(told: Mapping[Address, Told]) -> Iterator[Finding]:
    """`told`: what each Sentinel says that the url names."""
    for address, one in told.items():
        if one.trouble:
            yield warning("sentinels", f"{address} {one.trouble}")
        elif one.cannot_act:
            yield problem("sentinels", f"{address} would make no replica the master: {one.cannot_act}")
    answers = {address: one for address, one in told.items() if one.master is not None}
    masters = {one.master for one in answers.values()}
    if len(masters) > 1:
        each = "; ".join(f"{address} names {one.master}" for address, one in answers.items())
        yield problem("sentinels", f"they do not agree where the master is: {each}", "look again in a minute")
    if not answers:
        return
    watching = max(one.sentinels for one in answers.values())
    if len(masters) == 1:
        quorum = next(iter(answers.values())).quorum
        named = f"{len(answers)} of {len(told)} that the url names answer"
        yield ok("sentinels", f"{named}: the master is at {masters.pop()}; {watching} watch it, quorum {quorum}")
    if watching < _FEWEST_SENTINELS:
        text = f"only {watching} watch the master: if one of them dies, the others are no majority"
        yield warning("sentinels", text, f"run at least {_FEWEST_SENTINELS}, each on a machine of its own")


def asked(url: str, master: str) -> Told:
    """What the Sentinel of this url says."""
    try:
        answer = sentinel.ask(Ask(url, ("SENTINEL", "MASTER", master)))
    except redis.RedisError as error:
        return Told(trouble=sentinel.failed(error).text)
    found = sentinel.found_in(answer)
    facts = sentinel.facts(answer)
    trouble, cannot_act = "" if isinstance(found, Address) else found.text, ""
    if not facts:
        return Told(trouble=trouble)
    try:
        sentinel.ask(Ask(url, ("SENTINEL", "CKQUORUM", master)))
    except redis.exceptions.NoPermissionError as error:
        trouble = trouble or f"does not say whether the Sentinels can make a replica the master: {describe(error)}"
    except redis.RedisError as error:
        cannot_act = describe(error)
    return Told(
        master=found if isinstance(found, Address) else None,
        sentinels=_number(facts, "num-other-sentinels") + 1,
        quorum=_number(facts, "quorum"),
        trouble=trouble,
        cannot_act=cannot_act,
    )


def _number(facts: Mapping[str, str], name: str) -> int:
    text = facts.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0
