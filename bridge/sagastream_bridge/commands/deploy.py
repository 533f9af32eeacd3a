"""The commands for the definitions of a store: deploy one, list them."""

from typing import TYPE_CHECKING, Any, Final

import click

from sagastream_bridge.commands.ask import in_options
from sagastream_bridge.commands.context import WrongUsage, actor_option, opened, orderly
from sagastream_bridge.commands.given import document_at
from sagastream_bridge.commands.terminal import safe

if TYPE_CHECKING:
    from sagastream.store.definitions import Deployed


@click.command()
@click.argument("source", metavar="FILE|MODULE:NAME")
@actor_option("it stays with the version")
def deploy(source: str, actor: str) -> None:
    """Keep this version of a definition in the store, and make it the current one.

    - is standard input. A definition in Python is MODULE:NAME.

    Sagas that have begun stay as they are. A version never changes: raise `version` if you change a definition. To go
    back, deploy an earlier version: `sagastream definitions NAME --version N` prints it.
    """
    from sagastream.client.definition import deployable
    from sagastream.errors import MalformedMessage

    with orderly():
        document = document_at(source)
        definition = document.definition
        try:
            deployable(definition)
        except MalformedMessage as error:
            text = str(error).removeprefix("the definition: ")
            raise click.ClickException(safe(f"{document.where}: {text}")) from None
    with opened() as broker:
        from sagastream.client.blocking import SagaClient

        try:
            before = SagaClient(broker).deploy(definition, actor=actor)
        except MalformedMessage as error:
            raise WrongUsage(safe(in_options(str(error)))) from None
    current = f"{definition.name} version {definition.version} is current"
    if before == definition.version:
        click.echo(f"{current} already")
    else:
        click.echo(current if before is None else f"{current}; before, version {before} was")


@click.command("definitions")
@click.argument("name", required=False)
@click.option("--version", type=click.IntRange(1), help="Of NAME: this version  [default: the current one]")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, with all versions.")
def list_definitions(name: str | None, version: int | None, as_json: bool) -> None:
    """List the definitions of the store, and which version of each is current; or print the definition NAME, as its
    file says it."""
    if name is None and version is not None:
        raise WrongUsage("--version is for one definition: say its NAME")
    with opened(create=False) as broker:
        from sagastream.client.blocking import SagaClient

        if name is not None:
            click.echo(SagaClient(broker).definition(name, version).json(), nl=False)
            return
        import orjson

        found = SagaClient(broker).definitions()
        for one in found:
            click.echo(orjson.dumps(_members(one)).decode() if as_json else safe(_row(one)))
        if not found:
            click.echo(safe(f"no definitions in {broker.store}: sagastream deploy FILE"), err=True)


def _members(one: "Deployed") -> dict[str, Any]:
    versions = [
        version.definition.by.body()
        | {"deployed_at": version.deployed_at, "actor": version.actor, "steps": len(version.definition.steps)}
        for version in one.versions
    ]
    members = {"name": one.name, "current": one.current, "since": one.since, "actor": one.actor, "versions": versions}
    return members | ({"damaged": one.damaged} if one.damaged else {})


def _row(one: "Deployed") -> str:
    current = "no version is current" if one.current is None else f"version {one.current} since {one.since}"
    by = f" by {one.actor}" if one.actor else ""
    others = [str(version.definition.version) for version in one.versions if version.definition.version != one.current]
    more = f"; also {', '.join(others)}" if others else ""
    damaged = f"; damaged: {', '.join(one.damaged)}" if one.damaged else ""
    return f"{one.name}  {current}{by}{more}{damaged}"


#: All of them.
COMMANDS: Final = (deploy, list_definitions)
