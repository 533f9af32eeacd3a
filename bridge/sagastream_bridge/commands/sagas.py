"""The commands for sagas: begin one, show one, list them."""

import math
import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sagastream_bridge.commands.context import opened, orderly, redis_cli, tell_reach
from sagastream_bridge.commands.given import finite
from sagastream_bridge.commands.searching import refuse_services, search_options, wanted
from sagastream_bridge.commands.terminal import safe, say, width

if TYPE_CHECKING:
    from collections.abc import Callable

    from sagastream.broker.connection import Broker
    from sagastream.client.answers import Accepted
    from sagastream.client.blocking import SagaClient
    from sagastream.client.durability import Durable
    from sagastream.core.messages import Begin
    from sagastream.core.saga import SagaState
    from sagastream.store.keys import StoreKeys
    from sagastream_bridge.inspection.lookup import Found
    from sagastream_bridge.inspection.screen import Canvas

_T = TypeVar("_T")

#: How long `begin` waits for a worker to appear before it says that there is none, in seconds.
_WORKER_GRACE_S: Final = 1.0
#: How long `begin --wait` waits until it says why the saga has not ended, in seconds, and looks again.
_SAY_WHY_AFTER_S: Final = 3.0
#: How often `show --watch` looks at a saga that has not changed, in seconds: why it waits may have.
_LOOK_AGAIN_S: Final = 2.0


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
    done twice.
    """
    from sagastream_bridge.commands.to_begin import ToBegin, of_another_version

    with orderly():
        asked = ToBegin(what, **options)
    with opened() as broker:
        from sagastream.client.blocking import SagaClient
        from sagastream.store import layout

        patience = _Patience(broker, timeout)
        client = SagaClient(broker)
        keys = layout.check(broker)
        request = _within_trace(asked.request(client, patience.read))
        patience.tell(lambda: asked.differs(client))
        accepted = patience.begun(client, request, durable)
        patience.tell(lambda: of_another_version(client, request))
        if patience.is_workerless(keys):
            where = f"no worker is running in the store {broker.store}"
            say(f"{where}; the saga waits for one: sagastream worker", err=True)
            if (above := broker.also_above) is not None:
                say(above, err=True)
        if not wait:
            click.echo(f"{request.saga_id} accepted")
            return
        state = patience.ended(client, accepted)
        why = f"parked: {state.parked}" if state.parked else state.reason
        click.echo(f"{state.saga_id} {state.status}" + (f": {safe(why)}" if why else ""))
    sys.exit(0 if state.status == "COMPLETED" else 3)


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
        raise click.UsageError("--redis goes alone: it shows nothing of the saga itself")
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


class _Patience:
    """How long `begin` waits, and what it says meanwhile."""

    def __init__(self, broker: "Broker", timeout_s: float | None) -> None:
        """`timeout_s`: for all of it; None: without a limit."""
        from sagastream.broker.outage import Outage

        self._broker = broker
        self._timeout_s = timeout_s
        self._until = math.inf if timeout_s is None else time.monotonic() + timeout_s
        self._outage = Outage(broker, "sagastream begin", threading.Event())

    def read(self, read: "Callable[[], _T]") -> "_T":
        """Have something read from the store, however long the broker is away."""
        return self._outage.patiently(read, until=self._until)

    def tell(self, noticed: "Callable[[], str | None]") -> None:
        """Tell what was noticed in the store, if anything was. If it cannot be read, nothing is told: the saga begins
        all the same."""
        import redis

        from sagastream.errors import SagastreamError

        with suppress(redis.RedisError, SagastreamError):
            if (text := self.read(noticed)) is not None:
                say(text, err=True)

    def begun(self, client: "SagaClient", request: "Begin", durable: "Durable | None") -> "Accepted":
        """Have the request accepted, however long the broker is away. `durable`: as for SagaClient.begin."""
        import redis

        from sagastream.broker.failures import NodeRefuses, is_outage, is_refusal, told

        saga_id, may_have_arrived = request.saga_id, False

        def begin() -> "Accepted":
            nonlocal may_have_arrived
            try:
                return client.begin_request(request, durable=durable)
            except redis.RedisError as error:
                may_have_arrived = may_have_arrived or not is_refusal(error)
                raise

        again = f"the request to begin saga {saga_id} may have arrived; begin it again, and nothing is done twice"
        try:
            return self._outage.patiently(lambda: self._once_there_is_room(begin), until=self._until)
        except redis.RedisError as error:
            if not is_outage(error) or isinstance(error, NodeRefuses):
                raise
            text = f"saga {saga_id} was not begun within {self._timeout_s:g} s: {told(error)}"
            if may_have_arrived:
                text = f"saga {saga_id} was not accepted within {self._timeout_s:g} s: {told(error)}; {again}"
            raise click.ClickException(safe(text)) from None
        except SystemExit:
            click.echo(again if may_have_arrived else f"saga {saga_id} was not begun", err=True)
            raise

    def _once_there_is_room(self, begin: "Callable[[], Accepted]") -> "Accepted":
        """What `begin` returns. While the store is full, it is called again if the time is limited: there may be no
        room for days."""
        from sagastream.errors import StoreFull

        said = False
        while True:
            try:
                return begin()
            except StoreFull as error:
                left_s = self._until - time.monotonic()
                if self._timeout_s is None or left_s <= 0:
                    raise
                if not said:
                    click.echo(safe(f"{error}; trying again for {self._timeout_s:g} s"), err=True)
                    said = True
                time.sleep(min(error.retry_after_s, left_s))

    def is_workerless(self, keys: "StoreKeys") -> bool:
        """Whether no worker shows up. If the broker is away until the time is up, that is not known."""
        import redis

        try:
            return not self._outage.patiently(lambda: _worker_shows_up(self._broker, keys), until=self._until)
        except redis.RedisError:
            return False

    def ended(self, client: "SagaClient", accepted: "Accepted") -> "SagaState":
        """Wait for the end. If it takes long, say why, and again whenever that is something else."""
        saga_id, said = accepted.saga_id, ""
        try:
            while True:
                left_s = max(0.0, self._until - time.monotonic())
                try:
                    return client.wait(accepted, min(left_s, _SAY_WHY_AFTER_S))
                except TimeoutError:
                    kinds, lines = _why(client, saga_id)
                if left_s <= _SAY_WHY_AFTER_S:
                    helps = [] if kinds == said else lines[1:]  # what was said before still stands above
                    text = f"saga {saga_id} has not ended within {self._timeout_s:g} s{lines[0]}"
                    raise click.ClickException("\n".join([text, *helps]))
                if kinds not in ("", said):
                    said = kinds
                    click.echo("\n".join([f"saga {saga_id} waits{lines[0]}", *lines[1:]]), err=True)
        except SystemExit:
            click.echo(f"saga {saga_id} goes on without this command: sagastream show {saga_id}", err=True)
            raise


def _why(client: "SagaClient", saga_id: str) -> tuple[str, list[str]]:
    """Why a saga waits: the kinds of the causes; what they are, as the end of a sentence; and below it what helps."""
    import redis

    from sagastream.broker.failures import is_outage, told
    from sagastream.core.why import headline
    from sagastream.errors import UnknownSaga

    try:
        causes = client.why(saga_id)
    except UnknownSaga as error:  # it is gone, or its request is: a person has deleted it, or the store lost writes
        return "", [safe(f": {error}")]
    except redis.RedisError as error:
        if not is_outage(error):
            raise
        return "", [safe(f": {told(error)}")]
    what = f": {headline(causes)}" if causes else ""
    return " ".join(cause.kind for cause in causes), [safe(what), *(safe(line) for one in causes for line in one.do)]


def _worker_shows_up(broker: "Broker", keys: "StoreKeys") -> bool:
    from sagastream.store import heartbeat

    deadline = time.monotonic() + _WORKER_GRACE_S
    while not (alive := heartbeat.worker_is_alive(broker.client, keys)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return alive


#: All of them.
COMMANDS: Final = (begin, show, list_sagas)
