"""`sagastream erase`: it erases what sagas hold, says of each id what became of it, and sees to the server's files."""

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import click

from sagastream_bridge.commands.ask import in_options
from sagastream_bridge.commands.context import WrongUsage, actor_option, opened, reason_option, redis_cli
from sagastream_bridge.commands.terminal import safe

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sagastream.broker.connection import Broker
    from sagastream.client.erasing import Erased

#: How long to wait until the embedded server has written its files anew, in seconds.
_REWRITE_TIMEOUT_S: Final = 60.0
_OUT_OF_REACH: Final = "not erased: backups, exports, logs, SLOWLOG, databases of services, failed jobs in RQ"


@click.command()
@click.argument("saga_ids", metavar="ID...", nargs=-1, required=True)
@reason_option("Why, without what is erased. It stays with the saga.")
@actor_option("it stays with the saga too")
def erase(saga_ids: tuple[str, ...], reason: str, actor: str) -> None:
    """Erase inputs, params, results, errors, reasons and actors of sagas that have ended; their course stays.

    Exit code 1 if a saga has not ended, or something is still in use: erase again later.
    """
    import redis

    from sagastream.errors import MalformedMessage

    with opened(create=False) as broker:
        from sagastream.client.blocking import SagaClient

        try:
            erased = SagaClient(broker).erase_many(saga_ids, reason, actor=actor)
        except MalformedMessage as error:
            raise WrongUsage(safe(in_options(str(error)))) from None
        except redis.exceptions.NoPermissionError as error:
            raise click.ClickException(safe(str(error))) from None
        for line in _told(erased):
            click.echo(line)
        if erased.was_any:
            click.echo(safe(_files(broker)))
            click.echo(f"{_OUT_OF_REACH}; see docs/safety.md")
    for refused in erased.refused.values():
        click.echo(safe(f"Error: {refused}"), err=True)
    for line in erased.left:
        click.echo(safe(f"left: {line}"), err=True)
    if not erased.is_complete:
        sys.exit(1)


def _files(broker: "Broker") -> str:
    """What becomes of the data in the server's files."""
    if broker.embedded is not None and _rewritten(broker):
        return "files: written anew, without what was erased"
    asked = f"{redis_cli(broker)} BGREWRITEAOF"
    if broker.is_cluster:
        asked = "redis-cli --cluster call HOST:PORT BGREWRITEAOF"
    if broker.embedded is not None:
        return f"files: they hold it until they are written anew: {asked}"
    then = "and BGSAVE, if it takes snapshots"
    return f"files: those of the server hold it until its administrator has them written anew: {asked}, {then}"


def _rewritten(broker: "Broker") -> bool:
    """Have the embedded server write its files anew. Whether it has done it, as far as can be seen in good time."""
    import redis

    client, until = broker.client, time.monotonic() + _REWRITE_TIMEOUT_S
    is_asked = False
    while time.monotonic() < until:
        try:
            # One that is under way may have begun before the data were erased: that is waited for, then another begins.
            if not is_asked and not _is_rewriting(broker):
                client.execute_command("BGREWRITEAOF")  # type: ignore[no-untyped-call]
                is_asked = True
            if is_asked and not _is_rewriting(broker):
                info: Any = client.info("persistence")
                return bool(info["aof_last_bgrewrite_status"] == "ok")
        except redis.RedisError:
            return False
        time.sleep(0.02)
    return False


def _is_rewriting(broker: "Broker") -> bool:
    info: Any = broker.client.info("persistence")
    return bool(info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"])


def _told(what: "Erased") -> "Iterator[str]":
    """What was erased, on one line; then a line for each id of which nothing was erased in its hash."""
    from sagastream.store.columns import iso

    counts = {
        "saga": what.hashes,
        "record": what.records,
        "unread command": what.commands,
        "quarantined message": what.quarantined,
        "event": what.events,
    }
    parts = [f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items() if count]
    yield f"erased: {', '.join(parts) or 'nothing'}"
    for saga_id, done in what.before.items():
        by = "" if done.actor is None else f" by {safe(done.actor)}"
        yield f"{safe(saga_id)} was erased before, at {iso(done.at_ms)}{by}: {safe(done.reason)}"
    for saga_id, number in what.unknown.items():
        text = f"there is no saga {safe(saga_id)} in this store: it has expired, or the id is wrong; "
        found = "records and messages of it were found, and erased unless a line `left:` names them"
        yield text + (f"{number} {found}" if number else "nothing of it was found elsewhere")
