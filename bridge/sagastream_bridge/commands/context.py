"""What every command runs in: it opens and closes the broker, ends in order on a signal, and reports errors on one
line."""

import math
import os
import select
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from sagastream import log_output
from sagastream.telemetry import Log
from sagastream_bridge.commands import variables

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker
    from sagastream_bridge.definitions.documents import Document

_Command = TypeVar("_Command", bound=Callable[..., object])


#: How far the lines of a text after its first one are indented on a terminal.
_INDENT: Final = 4


class WrongUsage(click.ClickException):
    """Wrong usage, told without the usage of the command, which does not tell of the environment, of files or of
    modules."""

    exit_code = click.UsageError.exit_code


@contextmanager
def opened(*, create: bool = True, port: int | None = None) -> "Iterator[Broker]":
    """The broker that the environment names, open while a command runs. `create`: make the store of an embedded broker
    if there is none; a command that only looks, or acts on what is there, does not. `port`: see Broker."""
    with orderly():
        import redis

        from sagastream.broker.connection import Broker
        from sagastream.broker.failures import told
        from sagastream.errors import BrokerError

        broker = None
        try:
            broker = Broker(create=create, port=port)
            yield broker
        except redis.TimeoutError as error:  # whose text does not say which broker it is
            text = told(error)
            if broker is not None:
                text = text.replace("the broker", f"the broker of {broker.store}", 1)
            raise BrokerError(text) from None
        finally:
            if broker is not None:
                broker.close()


@contextmanager
def orderly() -> Iterator[None]:
    """Runs a command: a signal ends it in order, so that nothing is left running. An error that a user can cause or
    mend is one line on stderr, with exit code 1; with exit code 2 if an environment variable has a wrong value, or if
    there is nothing at a place that was named."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:  # it is closed: the next file that we open would take its place
            os.open(os.devnull, os.O_RDWR)
    import redis

    from sagastream.errors import PackageMissing, SagastreamError, SettingsError

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        _on_signals(_terminated)
    try:
        log_output.write_to_stderr()
        _look_at_the_environment()
        yield
    except PackageMissing as error:
        raise click.ClickException(safe(str(error))) from None
    except SettingsError as error:
        raise WrongUsage(safe(str(error))) from None
    except BrokenPipeError:
        # The reader has stopped reading: say nothing, and nothing at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(1) from None
    except (SagastreamError, redis.RedisError, OSError) as error:
        raise click.ClickException(safe(_told(error))) from None


def _look_at_the_environment() -> None:
    """Tell once what looks like a mistake in it; a child process does not tell again what its parent has told."""
    context = click.get_current_context()
    if context.params.get("until_eof") or __name__ in context.meta:
        return
    context.meta[__name__] = True
    log = Log("commands", "sagastream")
    for complaint in variables.complaints(os.environ):
        log.warning(complaint)


def _told(error: Exception) -> str:
    """What a person is told of an error."""
    import redis

    from sagastream.broker.failures import told

    if isinstance(error, redis.RedisError):
        return told(error)
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _on_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """What to do when the process has to end: it was asked to, or interrupted, or its terminal is gone."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as it is under nohup
            signal.signal(number, handler)


def _terminated(number: int, _: FrameType | None) -> NoReturn:
    _on_signals(lambda *_: None)  # a second signal must not interrupt the clean-up
    raise SystemExit(128 + number)


def call_on_signals(stop: Callable[[], object], until_eof: bool = False) -> None:
    """Let a thread call `stop` when the process has to end; with `until_eof`, also when standard input ends.

    A signal handler must not call it: that runs between any two statements of the main thread, and would wait forever
    for a lock that the main thread holds. It also runs only when the main thread gets to it; the pipe is written at
    once.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    _on_signals(lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch() -> None:
        while True:
            ready = select.select([read, 0] if until_eof else [read], [], [])[0]
            if read in ready or not os.read(0, 4096):
                break
        stop()

    threading.Thread(target=watch, daemon=True).start()


def stop_event(until_eof: bool = False) -> threading.Event:
    """An event that is set when the process has to end."""
    stop = threading.Event()
    call_on_signals(stop.set, until_eof)
    return stop


def _keep(_: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """Where `orderly` finds it, and child processes too."""
    if value is not None:
        assert isinstance(parameter, click.Option)
        os.environ[str(parameter.envvar)] = value


def logged(command: _Command) -> _Command:
    """Give a command that runs processes the options of what it logs, and how."""
    for name, variable, choices, default, text in (
        ("--log-level", log_output.LEVEL_VARIABLE, log_output.LEVELS, "info", "Log nothing below this level."),
        ("--log-format", log_output.FORMAT_VARIABLE, log_output.FORMATS, "text", "How a line on stderr is written."),
    ):
        option = click.option(
            name,
            type=click.Choice(choices, case_sensitive=False),
            default=default,
            show_default=True,
            envvar=variable,
            show_envvar=True,
            expose_value=False,
            callback=_keep,
            help=text,
        )
        command = option(command)
    return command


def traced(command: _Command) -> _Command:
    """Give a command that runs workers or services the option to write spans."""
    return click.option(
        "--traces",
        is_flag=True,
        envvar="SAGASTREAM_TRACES",
        show_envvar=True,
        expose_value=False,
        callback=_keep_flag,
        help="Write OpenTelemetry spans of handlers and sagas, where the variables OTEL_... say.",
    )(command)


def _keep_flag(_: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        assert isinstance(parameter, click.Option)
        os.environ[str(parameter.envvar)] = "1"


def finite(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    """Checks a number of seconds or days: click accepts nan and inf."""
    if value is not None and not math.isfinite(value):
        raise click.BadParameter("must be a number")
    return value


def counted(number: int, one: str) -> str:
    """A number of things, in words: `one` is what one of them is called."""
    return f"{number} {one}" if number == 1 else f"{number} {one}s"


def content(file: str) -> bytes:
    """What stands in a file that a person names; - is standard input. Raises WrongUsage if it cannot be read."""
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise WrongUsage(safe(f"{file}: {error.strerror or error}")) from None


def json_or_file(text: str, option: str) -> Any:
    """The value of an option that is JSON or, as @FILE, a file that holds it. Raises WrongUsage, and UsageError."""
    from sagastream.core.strict_json import decode
    from sagastream.errors import MalformedMessage

    if text == "@":
        raise click.UsageError(f"{option}: the name of a file is missing behind @")
    try:
        return decode(content(text[1:]) if text.startswith("@") else text.encode())
    except MalformedMessage as error:
        raise click.UsageError(safe(f"{option}: {error}")) from None


def document_at(where: str) -> "Document":
    """The definition or the saga that a person names: a file, - for standard input, or MODULE:NAME. Raises WrongUsage
    if nothing is there, and CannotRead if it is something else."""
    from sagastream_bridge.definitions.documents import NothingThere, read

    try:
        return read(where)
    except NothingThere as error:
        raise WrongUsage(safe(str(error))) from None


def redis_cli(broker: "Broker") -> str:
    """How to reach the broker with redis-cli. The login is left out, since this line may be kept in a log. The password
    of the embedded server is named by its file."""
    from sagastream.broker import urls

    line = urls.redis_cli(broker.url)
    if (server := broker.embedded) is not None and server.endpoint.password:
        return f"REDISCLI_AUTH=$(cat {shlex.quote(str(server.home / 'password'))}) {line}"
    return line


def width(*, err: bool = False) -> int | None:
    """How many columns the terminal has to which this command writes, or with `err` its errors; None: it writes to
    something else."""
    stream = sys.stderr if err else sys.stdout
    return shutil.get_terminal_size().columns if stream.isatty() else None


def say(text: str, *, err: bool = False) -> None:
    """Write a line that a stranger may have had a part in; on a terminal wrapped by words."""
    from sagastream_bridge.inspection import screen

    for row in screen.wrapped(safe(text), width(err=err), _INDENT):
        click.echo(row, err=err)


class Commands(click.Group):
    """The group of all commands. Their errors are wrapped by words on a terminal, which would cut them anywhere."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            if (columns := width(err=True)) is not None:
                told = _fitted(error.format_message(), columns)
                error.format_message = lambda: told  # type: ignore[method-assign]
            raise


def _fitted(text: str, columns: int) -> str:
    """A text after `Error: `. Below its first line stand commands, to be copied: they stay as they are."""
    from sagastream_bridge.inspection import screen

    label = "Error: "
    first, parted, more = text.partition("\n")
    return "\n".join(screen.wrapped(label + first, columns, _INDENT)).removeprefix(label) + parted + more


def safe(text: str) -> str:
    """The text without anything that a terminal could act on."""
    from sagastream.console import printable

    return printable(text)


def user_at_host() -> str:
    """Who runs this command."""
    import getpass
    import socket

    from sagastream.core.messages import MAX_ACTOR_CHARS

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run as a user that has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"[:MAX_ACTOR_CHARS]
