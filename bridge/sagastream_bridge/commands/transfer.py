"""The commands that move a store: export it, import it."""

import os
import sys
import tempfile
from collections.abc import Iterator
from typing import IO, Final

import click

from sagastream import files
from sagastream_bridge.commands.context import opened
from sagastream_bridge.commands.given import naming
from sagastream_bridge.commands.terminal import counted, safe


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), metavar="FILE")
def export(file: str) -> None:
    """Write the whole store into FILE, which must not exist (- for standard output): JSON, one object a line.

    Sagas in every state, messages under way, records, what services publish, definitions. Stop all workers, services
    and clients before; the store stays as it is. Start none on it after its copy has gone on: both would do the rest.
    """
    with opened(create=False) as broker:
        from sagastream_bridge.transfer.exporting import Export

        exported = Export(broker)
        with _opened(file) as out:
            out.writelines(exported.lines())
        click.echo(f"{counted(exported.sagas, 'saga')} exported", err=True)
        for key in exported.skipped:
            click.echo(safe(f"left out {key}, which holds something else than it should; sagastream doctor"), err=True)


@click.command("import")
@click.argument("file", type=click.Path(allow_dash=True), metavar="FILE")
def import_(file: str) -> None:
    """Read FILE (- for standard input) into an empty store, of any server and any number of partitions.

    If this fails while it writes, empty the store before you try again. An entry that a process held is marked as
    begun.
    """
    with opened() as broker, tempfile.TemporaryFile(prefix="sagastream-import-") as whole:
        from sagastream_bridge.transfer.importing import Import, keep

        called = "standard input" if file == files.STDIN else file
        with naming(file):
            keep(_pieces(file), whole, called)  # it is read twice
        imported = Import(broker, whole, called)
        sagas = imported.run()
        click.echo(safe(f"{counted(sagas, 'saga')} imported into {broker.store}"), err=True)
        if count := imported.set_back:
            text = f"the clock of this server is behind: the waits of {counted(count, 'saga')} begin now"
            click.echo(f"{text}. Set the clock right, if you can", err=True)


def _pieces(file: str) -> Iterator[bytes]:
    if file == files.STDIN:
        return iter(lambda: sys.stdin.buffer.read(files.PIECE_BYTES), b"")
    return files.pieces(file)


def _opened(file: str) -> IO[bytes]:
    """The file, for this user's eyes only: params and results stand in it."""
    if file == "-":
        return sys.stdout.buffer
    try:
        return os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except FileExistsError:
        raise click.ClickException(safe(f"{file} exists: name another file, or remove it")) from None


#: All of them.
COMMANDS: Final = (export, import_)
