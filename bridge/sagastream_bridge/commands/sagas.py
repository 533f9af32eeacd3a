"""The commands for sagas: begin one, show one, list them."""

import os
import shutil
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from sagastream_bridge.commands.context import WrongUsage, opened, orderly, redis_cli, tell_reach
from sagastream_bridge.commands.given import finite
from sagastream_bridge.commands.patience import Patience
from sagastream_bridge.commands.searching import refuse_services, search_options, wanted
from sagastream_bridge.commands.terminal import safe, say, width

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker
    from sagastream.client.durability import Durable
    from sagastream.core.messages import Begin
    from sagastream.store.keys import StoreKeys
    from sagastream_bridge.inspection.lookup import Found
    from sagastream_bridge.inspection.screen import Canvas

#: How often `show --watch` looks at a saga that has not changed, in seconds: why it waits may have.
_LOOK_AGAIN_S: Final = 2.0
#: `begin` tells at most so many names that no service has.
_MOST_STRANGERS: Final = 5


@click.command()
@click.argument("what", metavar="FILE|MODULE:NAME|NAME")
@click.option("--input", "data", metavar="JSON|@FILE", help="The input of a saga of a definition  [default: {}]")
@click.option("--id", "saga_id", metavar="ID", help="The id of such a saga  [default: NAME and a random number]")
@click.option("--version", type=click.IntRange(1), help="A version of the definition  [default: the current one]")
@click.option("--start-at", metavar="TIME", help="Do nothing before this time, like 2026-12-24T08:00+01:00.")
@click.option(
    "--attribute",
    "attributes",
    multiple=True,
    metavar="NAME=VALUE",
    help="What to find it by. Several may be given.",
)
@click.option(
    "--durable",
    type=click.Choice(["replica"]),
    help="Wait until a replica of the broker has the saga too. Exit code 1 if none confirms that within a second.",
)
@click.option("--wait", is_flag=True, help="Wait for the end. Exit code 3 if the saga was aborted or is parked.")
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    callback=finite,
    metavar="SECONDS",
    help="Wait at most this long: for room in the store, for a broker that goes away and, with --wait, for the end.",
)
def begin(what: str, wait: bool, timeout: float | None, durable: "Durable | None", **options: Any) -> None:
    """Begin a saga: that of FILE, or one of a definition.

    FILE is - for standard input, a name that ends in .json, or a file that exists. It holds a saga_begin body of the
    protocol, with saga_id and steps, or a definition. A definition in Python is MODULE:NAME. Anything else is the NAME
    of a definition that was deployed.

    Give a saga of a definition an --id if the command may have to be repeated: with the same id and input, nothing is
    done twice. The second time, it says that the saga was begun before, and how it is. It warns of services and
    commands that nobody has; the saga is accepted all the same.
    """
    from sagastream_bridge.commands.to_begin import ToBegin, begun_before

    with orderly():
        asked = ToBegin(what, **options)
    with opened() as broker:
        from sagastream.client.blocking import SagaClient

        patience = Patience(broker, timeout)
        client = SagaClient(broker)
        keys = patience.opened()
        request = _within_trace(asked.request(client, patience.read))
        patience.tell(lambda: asked.differs(client))
        accepted = patience.begun(client, request, durable)
        there = patience.look(lambda: client.get(request.saga_id))
        before = begun_before(request, there)
        if there is None or not there.ended:
            _tell_who_is_missing(broker, keys, patience, request)
        if not wait:
            click.echo(safe(before or f"{request.saga_id} accepted"))
            return
        if before is not None:
            say(before, err=True)
        state = patience.ended(client, keys, accepted)
        why = f"parked: {state.parked}" if state.parked else state.reason
        click.echo(f"{state.saga_id} {state.status}" + (f": {safe(why)}" if why else ""))
        if state.parked:
            click.echo(f"sagastream show {state.saga_id}  # says what you can do", err=True)
    sys.exit(0 if state.status == "COMPLETED" else 3)


def _tell_who_is_missing(broker: "Broker", keys: "StoreKeys", patience: "Patience", request: "Begin") -> None:
    """Say if nobody will take the saga on, or a step of it: it is accepted all the same, since they may come."""
    workerless = patience.is_workerless(keys)
    if workerless:
        where = f"no worker is running in the store {broker.store}"
        say(f"{where}; the saga waits for one: sagastream worker", err=True)
        if (above := broker.also_above) is not None:
            say(above, err=True)
    # Who may not know who is at work may know nothing of services either.
    strangers = [] if workerless is None else patience.strangers(keys, request, workerless=workerless)
    for text in strangers[:_MOST_STRANGERS]:
        say(f"warning: {text}", err=True)
    if len(strangers) > _MOST_STRANGERS:
        say(f"warning: and {len(strangers) - _MOST_STRANGERS} more of the kind", err=True)
    if strangers:
        do = f"sagastream cancel {request.saga_id} --now --reason TEXT"
        click.echo(f"         {do}  # takes it back; begin another with the right names", err=True)


def _within_trace(request: "Begin") -> "Begin":
    """The request, within the span that the environment names: programs that run others within a span set these
    variables for them."""
    from msgspec.structs import replace

    from sagastream.core import trace_context

    named = {name.lower(): value for name in (b"TRACEPARENT", b"TRACESTATE") if (value := os.environb.get(name))}
    traceparent, tracestate = trace_context.of_entry(named)
    return request if traceparent is None else replace(request, traceparent=traceparent, tracestate=tracestate)


@click.command()
@click.argument("saga_id", metavar="ID")
@click.option("--history", is_flag=True, help="What happened to it, attempt by attempt.")
@click.option("--watch", is_flag=True, help="Show it again whenever it changes, until it has ended.")
@click.option("--json", "as_json", is_flag=True, help="The SagaState of the protocol, and all else that is known.")
@click.option("--redis", "by_hand", is_flag=True, help="Print the lines of redis-cli that show it, for a shell.")
def show(*, saga_id: str, history: bool, watch: bool, as_json: bool, by_hand: bool) -> None:
    """Show where a saga is, and why."""
    from sagastream.core.messages import is_id

    if not is_id(saga_id):
        raise click.BadParameter("an id is 1 to 128 characters of A-Z a-z 0-9 . _ : -", param_hint="ID")
    if by_hand and (history or watch or as_json):
        raise WrongUsage("--redis goes alone: it shows nothing of the saga itself")
    with opened(create=False) as broker:
        if by_hand:
            _print_looks(broker, saga_id)
            return
        picture = _Picture(broker, saga_id, history=history, as_json=as_json)
        if watch:
            _watch(broker, picture)
        else:
            picture.show(picture.look())


def _print_looks(broker: "Broker", saga_id: str) -> None:
    """Print how to look at a saga with redis-cli."""
    from sagastream.errors import UnreadableSaga
    from sagastream.store import layout, sagas
    from sagastream_bridge.inspection.by_hand import looks

    keys = layout.look(broker)
    state = sagas.read(broker.client, keys, [saga_id])[0][saga_id]
    if isinstance(state, UnreadableSaga):
        say(f"{state}", err=True)
    elif state is None:
        say(f"there is no saga {saga_id} in the store {broker.store}", err=True)
    cli, of = redis_cli(broker, keys.saga(saga_id)), keys.of(saga_id).number
    if len(keys.tags) > 1:
        click.echo(f"# {saga_id} is in partition {of} of {len(keys.tags)}, which has the tag {{{keys.tags[of]}}}")
    for look in looks(keys, saga_id, state):
        click.echo(f"# {look.what}\n{look.line(cli)}")
    if state is None:
        raise SystemExit(1)


class _Picture:
    """What `show` prints of one saga."""

    def __init__(self, broker: "Broker", saga_id: str, *, history: bool, as_json: bool) -> None:
        self._broker = broker
        self._saga_id = saga_id
        self._history = history
        self._as_json = as_json

    def look(self) -> "Found":
        """The saga as it is now. Raises ClickException if there is none."""
        from sagastream_bridge.inspection import lookup, saga_views

        found = lookup.saga(self._broker, self._saga_id)
        if found.state is None:
            absent = saga_views.absent(found.causes, found.notes)
            text = f"there is no saga {self._saga_id} in the store {self._broker.store}{absent}"
            raise click.ClickException(safe(text))
        return found

    def show(self, found: "Found") -> None:
        click.echo("\n".join(self.lines(found)))

    def fitting(self, found: "Found") -> "list[str]":
        """As much of it as the terminal holds."""
        from sagastream_bridge.inspection.screen import clipped

        columns, rows = shutil.get_terminal_size()
        return clipped("\n".join(self.lines(found)).split("\n"), rows, columns, newest_last=self._history)

    def lines(self, found: "Found") -> "list[str]":
        from sagastream_bridge.inspection import lookup, saga_views

        assert found.state is not None
        if self._as_json:
            return [lookup.as_json(found, with_history=self._history)]
        if self._history:
            return list(saga_views.history_of(found.state, width()))
        lines = list(saga_views.saga(found.state, found.now_ms, found.notes, found.causes, width()))
        if self._broker.embedded is not None:
            lines.append(safe(f"  store    {self._broker.store}"))
        return lines


def _watch(broker: "Broker", picture: _Picture) -> None:
    """Show a saga again whenever it changes, until it has ended. On a terminal, each picture takes the place of the one
    before, and fits its height; ages and causes are kept up to date, too. The last one is whole, and stays. Elsewhere,
    a blank line stands between them."""
    from sagastream_bridge.inspection.screen import Canvas

    canvas = Canvas(lambda text: click.echo(text, nl=False))
    try:
        last = _pictures(broker, picture, canvas)
    finally:
        canvas.close()
        sys.stdout.flush()
    if last is not None:
        picture.show(last)


def _pictures(broker: "Broker", picture: _Picture, canvas: "Canvas") -> "Found | None":
    """Show them until the saga has ended. Returns what is to be shown after that."""
    from sagastream_bridge.inspection.watching import Watch

    watch, shown = Watch(broker, "sagastream show"), None
    on_terminal = width() is not None
    while True:
        found = watch.look(picture.look)
        state = found.state
        assert state is not None
        if on_terminal and state.ended:
            return found
        if on_terminal:
            canvas.draw(picture.fitting(found))
        elif shown is None or (state.version, state.updated_ms) != (shown.version, shown.updated_ms):
            if shown is not None:
                click.echo()
            picture.show(found)
        sys.stdout.flush()  # a reader of the pipe sees each picture at once
        if state.ended:
            return None
        shown = state
        watch.wait(state, _LOOK_AGAIN_S)


@click.command("list")
@search_options
@click.option("--limit", default=50, show_default=True, type=click.IntRange(1, 1000), help="List at most this many.")
@click.option("--cursor", metavar="CURSOR", help="Go on where a list of the same search ended.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line; the last one has cursor and total.")
def list_sagas(limit: int, cursor: str | None, as_json: bool, **options: Any) -> None:
    """List sagas in the order of their begins, newest first: all of them, or those that match all options given."""
    with orderly():
        search = wanted(**options)
    with opened(create=False) as broker:
        from sagastream.errors import NewerFormat
        from sagastream_bridge.inspection import list_views, lookup

        try:
            listing = lookup.listing(broker, search, limit, cursor)
        except ValueError as error:
            raise click.BadParameter(safe(str(error)), param_hint="--cursor") from None
        refuse_services(broker, listing)
        page = listing.page
        lines = map(lookup.row_as_json, page.sagas, listing.causes) if as_json else list_views.rows(listing, width())
        for line in lines:
            click.echo(line)
        for problem in page.unreadable:
            label = "NEWER" if isinstance(problem, NewerFormat) else "DAMAGED"
            click.echo(f"{label:<12}  {safe(str(problem))}", err=as_json)
        if as_json:
            click.echo(lookup.page_as_json(page, listing.reach.away))
        tell_reach(listing.reach)
        say(list_views.counted(listing, limit), err=True)


#: All of them.
COMMANDS: Final = (begin, show, list_sagas)
