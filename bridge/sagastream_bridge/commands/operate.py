"""The commands of operators: they act on sagas, on quarantined messages and on the store."""

import contextlib
import json
import sys
from dataclasses import asdict
from itertools import chain, islice
from typing import TYPE_CHECKING, Final

import click

from sagastream_bridge.commands.ask import in_options
from sagastream_bridge.commands.context import WrongUsage, actor_option, opened, reason_option, tell_reach
from sagastream_bridge.commands.given import finite
from sagastream_bridge.commands.terminal import safe, width

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sagastream.broker.connection import Broker
    from sagastream.store.keys import StoreKeys
    from sagastream.store.quarantine import Quarantined
    from sagastream.store.reach import Reach


def _check(actor: str, reason: str | None) -> None:
    """Raises WrongUsage if one of them cannot be kept."""
    from sagastream.errors import MalformedMessage
    from sagastream.store import operations as done

    try:
        done.check(actor, reason)
    except MalformedMessage as error:
        raise WrongUsage(safe(in_options(str(error)))) from None


@click.group()
def quarantine() -> None:
    """Messages that made no sense, or came too late: look at them, put them back, drop them."""


@quarantine.command("list")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1), help="List at most this many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_quarantined(limit: int, as_json: bool) -> None:
    """List them, the newest first."""
    with opened(create=False) as broker:
        from sagastream.broker.exchange import run
        from sagastream.store import layout, reach
        from sagastream.store.quarantine import Quarantine
        from sagastream_bridge.inspection import message_views

        def read(there: "Reach") -> "tuple[Reach, Iterator[Quarantined], int]":
            messages = Quarantine(broker.client, there.keys)
            newest = messages.newest_first()
            first = list(islice(newest, 1))  # for this one, all streams are read
            return there, chain(first, newest), len(messages)

        there = run(broker.client, reach.look(layout.look(broker)))
        found, messages, total = reach.despite_refusals(broker.client, there, read)
        tell_reach(found)
        shown = 0
        for message in islice(messages, limit):
            shown += 1
            click.echo(json.dumps(_as_json(message)) if as_json else message_views.quarantined(message))
        counted = f"{shown} shown of {total}" if total else "nothing is quarantined"
        click.echo(counted + (" (--limit shows more)" if shown < total else ""), err=True)


@quarantine.command("show")
@click.argument("entry_id", metavar="ID")
def show_quarantined(entry_id: str) -> None:
    """Show all that is known about one message, as JSON."""
    with opened(create=False) as broker:
        from sagastream.store import layout
        from sagastream.store.quarantine import Quarantine

        click.echo(json.dumps(_as_json(Quarantine(broker.client, layout.look(broker)).get(entry_id)), indent=2))


_actor = actor_option("for `sagastream operations`")
_reason = reason_option("Why, for `sagastream operations`.", required=False)


@quarantine.command("replay", short_help="Put messages back, to be read again.")
@click.argument("entry_ids", metavar="ID...", nargs=-1, required=True)
@_reason
@_actor
def replay_quarantined(entry_ids: tuple[str, ...], reason: str | None, actor: str) -> None:
    """Put messages back into the streams from which they came, to be read again, once the cause is fixed."""
    _check(actor, reason)
    with opened(create=False) as broker:
        from sagastream.store import layout
        from sagastream.store.quarantine import Quarantine

        messages = Quarantine(broker.client, layout.look(broker))
        for entry_id in entry_ids:
            message = messages.replay(entry_id, actor=actor, reason=reason)
            click.echo(safe(f"{message.id} put back into {message.stream}"))


@quarantine.command("drop")
@click.argument("entry_ids", metavar="ID...", nargs=-1, required=True)
@_reason
@_actor
def drop_quarantined(entry_ids: tuple[str, ...], reason: str | None, actor: str) -> None:
    """Delete messages for good."""
    _check(actor, reason)
    with opened(create=False) as broker:
        from sagastream.store import layout
        from sagastream.store.quarantine import Quarantine

        messages = Quarantine(broker.client, layout.look(broker))
        for entry_id in entry_ids:
            message = messages.drop(entry_id, actor=actor, reason=reason)
            click.echo(safe(f"{message.id} dropped"))


@click.command()
@click.argument("service", metavar="SERVICE")
@_reason
@_actor
def drop_commands(service: str, reason: str | None, actor: str) -> None:
    """Drop the commands of a service that does not run: those that no process has read and no saga waits for.

    Exit code 1 if some were kept.
    """
    from sagastream.core.messages import is_service

    if not is_service(service):
        raise click.BadParameter("a name is 1 to 128 characters of A-Z a-z 0-9 . _ -", param_hint="SERVICE")
    _check(actor, reason)
    with opened() as broker:
        from sagastream.broker.exchange import run
        from sagastream.client.evidence import survey
        from sagastream.core.why_service import nobody_has
        from sagastream.store import layout, reach, unread

        reached = run(broker.client, reach.look(layout.look(broker)))
        tell_reach(reached)
        found = run(broker.client, unread.drop(reached.keys, service, actor=actor, reason=reason))
        click.echo(f"{found.dropped} dropped")
        is_nothing = not (found.dropped or found.awaited or found.kept)
        evidence = run(broker.client, survey(reached.keys, [service])) if is_nothing else None
        if evidence is not None and (nobody := nobody_has(service, None, evidence)):
            click.echo(safe(f"warning: {nobody}"), err=True)
        if found.awaited:
            ids = ", ".join(found.awaited[:5]) + (" …" if len(found.awaited) > 5 else "")
            click.echo(safe(f"{len(found.awaited)} kept: sagas wait for them: {ids}"), err=True)
        if found.kept:
            click.echo(f"{found.kept} kept: a process may have read them before", err=True)
    if found.awaited or found.kept:
        sys.exit(1)


@click.command()
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 10_000), help="List at most this many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def operations(limit: int, as_json: bool) -> None:
    """List what operators did that no saga tells of: what they paused, resumed, put back or dropped, newest first."""
    with opened(create=False) as broker:
        from sagastream.broker.exchange import run
        from sagastream.store import layout
        from sagastream.store import operations as done
        from sagastream.store.columns import iso

        found = run(broker.client, done.newest(layout.look(broker), limit))
        for one in found:
            said = {"at": iso(one.at_ms), "verb": one.verb, "what": one.what, "actor": one.actor, "reason": one.reason}
            line = (
                f"{said['at']}  {one.verb} {one.what}  by {one.actor or 'somebody'}: {one.reason or 'no reason given'}"
            )
            click.echo(json.dumps(said) if as_json else safe(line))
        if not found and not as_json:
            click.echo("no operations are noted")


@click.command()
@click.option(
    "--repair",
    is_flag=True,
    help="Repair what can be repaired: the places of sagas in the indexes, and entries that nobody would read.",
)
@click.option(
    "--after-failover",
    is_flag=True,
    help="Compare the sagas with the effects of their services instead; --repair undoes effects that must not stand.",
)
@click.option(
    "--hours",
    default=24.0,
    show_default=True,
    type=click.FloatRange(0, 24 * 365),
    callback=finite,
    help="With --after-failover: look at what has changed in this many hours.",
)
@click.option("--settled", is_flag=True, help="What is lost was dealt with: tell no more of it.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def doctor(repair: bool, after_failover: bool, hours: float, settled: bool, as_json: bool) -> None:
    """Examine the store: is it kept safely, has every live saga a reason to move, is somebody at work?

    Exit code 1 if there is a problem that was not repaired.
    """
    if settled and (repair or after_failover or as_json):
        raise WrongUsage("--settled goes alone: it examines nothing")
    asked = click.get_current_context().get_parameter_source("hours")
    if asked is not click.core.ParameterSource.DEFAULT and not after_failover:
        raise WrongUsage("--hours goes with --after-failover")
    with opened(create=False) as broker:
        from sagastream.store import layout, sagas
        from sagastream_bridge.inspection import embedded
        from sagastream_bridge.inspection.after_failover import AfterFailover
        from sagastream_bridge.inspection.doctor import Doctor
        from sagastream_bridge.inspection.findings import PROBLEM, lines

        if settled:
            _settle(broker, layout.look(broker))
            return
        if after_failover:
            since_ms = sagas.read(broker.client, layout.look(broker), [])[1] - round(hours * 3600_000)
            findings = AfterFailover(broker, since_ms=since_ms, repair=repair).examine()
        else:
            findings = chain(embedded.findings(broker), Doctor(broker, repair=repair).examine())
        problems = 0
        for finding in findings:
            problems += finding.level == PROBLEM
            if as_json:
                click.echo(json.dumps(asdict(finding)))
            else:
                for line in lines(finding, width()):
                    click.echo(line)
    if problems:
        sys.exit(1)


def _settle(broker: "Broker", keys: "StoreKeys") -> None:
    """Have no more told of what is lost by now, and say what that is."""
    from sagastream.store import lineage

    losses = lineage.losses(broker.client, keys)
    lineage.settle(broker.client, keys)
    for loss in losses:
        click.echo(safe(f"no more is told of this: {loss.text}"))
    if not losses:
        click.echo("nothing was lost, as far as any process has noticed")


def _as_json(message: "Quarantined") -> dict[str, object]:
    from sagastream.codecs.setting import codec_of
    from sagastream.core.sealed_messages import opened_message
    from sagastream.core.strict_json import encode
    from sagastream.store.columns import iso

    opened, body = opened_message(codec_of(None), message.message), message.body
    if opened is not message.message:
        with contextlib.suppress(TypeError):  # it nests too deep to be written
            body = encode(opened)
    return {
        "id": message.id,
        "at": iso(message.at_ms),
        "reason": message.reason,
        "stream": message.stream,
        "entry_id": message.entry_id,
        "body": body.decode(errors="backslashreplace"),
        "fields": message.fields,
    }


#: All of them.
COMMANDS: Final = (quarantine, drop_commands, operations, doctor)
