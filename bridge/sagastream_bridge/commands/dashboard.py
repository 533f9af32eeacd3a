"""The command for the dashboard."""

import os
from typing import Final

import click

from sagastream_bridge.commands.context import WrongUsage, opened, orderly
from sagastream_bridge.commands.ending import stop_event
from sagastream_bridge.commands.given import content
from sagastream_bridge.commands.process_options import logged, until_eof_option
from sagastream_bridge.commands.terminal import safe

_VARIABLE: Final = "SAGASTREAM_DASHBOARD_TOKEN"
_MISSING: Final = "the dashboard needs the package {}: pip install 'sagastream[dashboard]'"
_REACHED: Final = (
    "others can reach {}: give the dashboard a token, by --token-file FILE or {}; `openssl rand -hex 16` makes one"
)


@click.command()
@click.option("--port", default=8420, show_default=True, type=click.IntRange(0, 65535), help="0 takes any free one.")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Where to listen. Others can reach any other address than the default, so it needs a token.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="NAME",
    help="A name under which browsers reach it, as of a proxy; may be given several times.",
)
@click.option(
    "--token-file",
    type=click.Path(),
    metavar="FILE",
    help=f"Who looks must know the token in this file. {_VARIABLE} may hold it instead.",
)
@click.option(
    "--allow-actions", is_flag=True, help="Let people act on sagas, services and quarantined messages from the pages."
)
@logged
@until_eof_option
def dashboard(
    port: int,
    host: str,
    names: tuple[str, ...],
    token_file: str | None,
    *,
    allow_actions: bool,
    until_eof: bool,
) -> None:
    """Show the sagas of the store on pages, for a browser.

    It only shows, unless it is started with --allow-actions. It needs the extra: pip install 'sagastream[dashboard]'
    """
    with orderly():
        from sagastream.errors import PackageMissing

        try:
            import jinja2  # noqa: F401
            import starlette  # noqa: F401
            import uvicorn  # noqa: F401
        except ImportError as error:
            raise PackageMissing(_MISSING.format(error.name)) from None
    token = _token(token_file)
    from sagastream_bridge.dashboard import rules

    if token is None and not rules.is_loopback(host):
        raise WrongUsage(safe(_REACHED.format(host, _VARIABLE)))
    stop = stop_event(until_eof)
    from sagastream_bridge.dashboard.reading import ANSWER_TIMEOUT_S

    with opened(create=False, answer_timeout_s=ANSWER_TIMEOUT_S) as broker:
        from sagastream.store import layout
        from sagastream_bridge.dashboard.server import DashboardServer

        layout.look(broker)
        server = DashboardServer(
            broker,
            host=host,
            port=port,
            names=rules.Names.of(host, names),
            token=token,
            allow_actions=allow_actions,
        )
        click.echo(safe(f"dashboard  {server.url}"))
        click.echo(safe(f"store      {broker.store}"))
        click.echo(
            "token      " + ("no: all who reach it may look" if token is None else "yes: who looks must know it")
        )
        click.echo("acts       " + ("yes, each with a reason" if allow_actions else "no: --allow-actions lets it act"))
        server.run(stop)


def _token(file: str | None) -> str | None:
    """The token that a person must know. Raises WrongUsage if it cannot be used."""
    from sagastream_bridge.dashboard import rules

    token = os.environ.get(_VARIABLE)
    where = _VARIABLE
    if file is not None:
        token, where = content(file).decode(errors="replace").strip(), file
    if token is None:
        return None
    if file is None and not token:
        # Mostly the variable from which it was set is not set. Then anybody could look, and act.
        raise WrongUsage(f"{_VARIABLE} is empty: set it, or unset it if nobody needs a token")
    if (complaint := rules.complaint_about(token)) is not None:
        raise WrongUsage(safe(f"{where}: {complaint}"))
    return token
