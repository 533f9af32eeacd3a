"""What is asked of many sagas at once; and the command that tells how that goes on: bulk."""

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import click

from sagastream_bridge.commands.context import WrongUsage, actor_option, opened, orderly, reason_option, tell_reach
from sagastream_bridge.commands.searching import refuse_services, wanted
from sagastream_bridge.commands.terminal import counted, safe, say, width

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sagastream.broker.connection import Broker
    from sagastream.core.bulks import Bulk
    from sagastream.store.keys import StoreKeys

#: How many of the sagas that are found are shown before they are asked.
_SAMPLE: Final = 10
#: How often `bulk --follow` looks, in seconds.
_LOOK_EVERY_S: Final = 0.5


def begin(verb: str, reason: str, actor: str, *, rate: int, yes: bool, now: bool, search: dict[str, Any]) -> None:
    """Show which sagas are meant, ask whether that is so, and begin a bulk."""
    from sagastream.core.bulks import checked
    from sagastream.errors import MalformedMessage

    with orderly():
        try:
            bulk = checked(verb, wanted(**search), reason, actor, rate=rate, now=now)
        except MalformedMessage as error:
            raise WrongUsage(safe(_in_options(str(error)))) from None
    with opened(create=False) as broker:
        from sagastream.broker.exchange import run
        from sagastream.store import bulks, layout
        from sagastream_bridge.inspection import list_views, lookup

        keys = layout.check(broker)
        listing = lookup.listing(broker, bulk.filter, _SAMPLE, None)
        page = listing.page
        refuse_services(broker, listing)
        tell_reach(listing.reach)
        if not page.sagas and page.cursor is None:
            click.echo("there is no such saga: nothing is done")
            return
        for line in list_views.rows(listing, width()):
            click.echo(line)
        sagas = f"{page.total} or more sagas" if not page.total_is_exact else counted(page.total, "saga")
        say(f"to {verb}{' now' if now else ''}: {sagas} with {bulks.told(bulk.filter)}")
        if not yes:
            if not sys.stdin.isatty():
                raise WrongUsage("nothing was done: standard input is no terminal to ask on; say --yes")
            click.confirm("Ask all of them?", abort=True, err=True)
        with _told_errors():
            begun = run(
                broker.client,
                bulks.begin(keys, verb, bulk.filter, reason=reason, actor=actor, rate=rate, now=now),
            )
        click.echo(f"bulk {begun.bulk_id} has begun; it goes on by itself: sagastream bulk {begun.bulk_id} --follow")
        if listing.standing:
            say(f"note: {listing.standing[0].text}", err=True)


@contextmanager
def _told_errors() -> "Iterator[None]":
    import redis

    from sagastream.errors import MalformedMessage, RequestRefused

    try:
        yield
    except MalformedMessage as error:
        raise WrongUsage(safe(_in_options(str(error)))) from None
    except (RequestRefused, redis.exceptions.NoPermissionError) as error:
        raise click.ClickException(safe(str(error))) from None


def _in_options(text: str) -> str:
    """A text that names members of a bulk, with the names of their options instead."""
    if text.startswith(("reason must", "actor must", "rate must")):
        text = f"--{text}"
    return text.replace("for all: status", "for all: --status").replace("now is for", "--now is for")


@click.command()
@click.argument("bulk_id", metavar="[ID]", required=False)
@click.option("--pause", "verb", flag_value="pause", help="Ask no more sagas until it is resumed.")
@click.option("--resume", "verb", flag_value="resume", help="Let it go on where it was.")
@click.option("--stop", "verb", flag_value="stop", help="End it. It cannot be resumed.")
@click.option("--follow", is_flag=True, help="Tell how it goes on until it ends. Exit code 3 if not all was done.")
@reason_option("Why you pause, resume or stop it; see sagastream operations.", required=False)
@actor_option("see sagastream operations")
@click.option("--limit", default=20, show_default=True, type=click.IntRange(0, 1000), help="List at most this many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line; of one bulk, then one for each result.")
def bulk(
    *,
    bulk_id: str | None,
    verb: str | None,
    follow: bool,
    reason: str | None,
    actor: str,
    limit: int,
    as_json: bool,
) -> None:
    """Show what was begun by retry, skip, abandon or cancel of many sagas: all of them, or the bulk ID."""
    if bulk_id is None and (verb or follow):
        raise WrongUsage(f"--{verb or 'follow'} needs the ID of a bulk; sagastream bulk lists them")
    with opened(create=False) as broker:
        from sagastream.broker.exchange import run
        from sagastream.store import bulks, layout, sagas
        from sagastream_bridge.inspection import bulk_views

        keys = layout.look(broker)
        if bulk_id is None:
            found = run(broker.client, bulks.listed(keys, limit or 1))
            _, now_ms = sagas.read(broker.client, keys, [])
            for one in found:
                click.echo(bulk_views.as_json(one) if as_json else bulk_views.row(one, now_ms))
            if not found and not as_json:
                click.echo("there is no bulk")
            return
        with _told_errors():
            if verb is not None:
                run(broker.client, bulks.turn(keys, bulk_id, verb, actor=actor, reason=reason))
            if follow:
                _follow(broker, keys, bulk_id, as_json=as_json)
            one = run(broker.client, bulks.load(keys, bulk_id))
        if not follow or not as_json:
            _show(broker, keys, one, limit, as_json=as_json)
    if follow and (one.refused or one.state != "DONE"):
        sys.exit(3)


def _show(broker: "Broker", keys: "StoreKeys", one: "Bulk", limit: int, *, as_json: bool) -> None:
    from sagastream.broker.exchange import run
    from sagastream.store import bulks, sagas
    from sagastream_bridge.inspection import bulk_views

    results = run(broker.client, bulks.results(keys, one.bulk_id))
    turns = run(broker.client, bulks.turns(keys, one.bulk_id))
    taken = [result.saga_id for result in results if result.refused is None]
    parked = run(broker.client, bulks.parked_now(keys, taken))
    if as_json:
        click.echo("\n".join([bulk_views.as_json(one, turns, parked), *map(bulk_views.result_as_json, results)]))
        return
    _, now_ms = sagas.read(broker.client, keys, [])
    refused = [result for result in results if result.refused is not None]
    click.echo("\n".join(bulk_views.lines(one, refused, limit, now_ms, turns, parked_now=parked)))


def _follow(broker: "Broker", keys: "StoreKeys", bulk_id: str, *, as_json: bool) -> None:
    """Tell how a bulk goes on, whenever it has, until it has ended and all is answered."""
    from sagastream.broker.exchange import run
    from sagastream.store import bulks
    from sagastream_bridge.inspection import bulk_views

    told = None
    while True:
        one = run(broker.client, bulks.load(keys, bulk_id))
        line = bulk_views.as_json(one) if as_json else safe(f"{one.state}  {bulk_views.progress(one)}")
        if line != told:
            click.echo(line)
            sys.stdout.flush()  # a reader of the pipe sees each line at once
            told = line
        if one.ended and not one.open:
            return
        time.sleep(_LOOK_EVERY_S)
