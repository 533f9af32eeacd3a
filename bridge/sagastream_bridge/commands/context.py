"""What every command runs in: it opens and closes the broker, ends in order on a signal, and reports errors on one
line."""

import logging
import os
import shlex
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from sagastream import log_output
from sagastream.telemetry import Log
from sagastream_bridge.commands import variables
from sagastream_bridge.commands.ending import on_signals, terminated
from sagastream_bridge.commands.needed_roles import role_of
from sagastream_bridge.commands.terminal import safe, say

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker
    from sagastream.store.reach import Reach

_Command = TypeVar("_Command", bound=Callable[..., Any])


class WrongUsage(click.ClickException):
    """Wrong usage, told in one line, without the usage of the command: that says nothing of the environment, of files,
    or of options that do not go together."""

    exit_code = click.UsageError.exit_code


@contextmanager
def opened(*, create: bool = True, **options: Any) -> "Iterator[Broker]":
    """The broker that the environment names, open while a command runs. `create`: make the store of an embedded broker
    if there is none; a command that only looks, or acts on what is there, does not. `options`: see Broker."""
    with orderly():
        import redis

        from sagastream.broker.connection import Broker
        from sagastream.broker.failures import told
        from sagastream.errors import BrokerError

        broker = None
        try:
            broker = Broker(create=create, **options)
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
        on_signals(terminated)
    try:
        log_output.write_to_stderr(unless=None if _runs_processes() else _is_of_node)
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


def _runs_processes() -> bool:
    """Whether the command runs workers or services, which work for long: such a command has options for its log."""
    return any(option.name == "log_level" for option in click.get_current_context().command.params)


def _is_of_node(record: logging.LogRecord) -> bool:
    """Whether it says that a node of a cluster is away or back. A command that ends soon says itself what it could not
    reach, and other nodes are no concern of it."""
    return hasattr(record, "node")


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

    from sagastream.broker.failures import is_silent, told

    if isinstance(error, redis.RedisError):
        context = click.get_current_context()
        saga_id = context.params.get("saga_id")
        which = f"saga {saga_id} cannot be reached: " if saga_id is not None and is_silent(error) else ""
        return f"{which}{told(error, role=role_of(_name(context), context.params))}"
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _name(context: click.Context) -> str:
    """The name of a command, with that of its group before it."""
    names: list[str] = []
    step: click.Context | None = context
    while step is not None and step.parent is not None:
        names.insert(0, step.command.name or "")
        step = step.parent
    return " ".join(names)


def tell_reach(found: "Reach") -> None:
    """Say on stderr what could not be reached of the store."""
    from sagastream.broker.failures import brief

    for line in found.told():
        say(line, err=True)
    if found.shared is not None:
        say(f"{brief(found.shared)}: what is known of the whole store cannot be read, such as who is at work", err=True)


def redis_cli(broker: "Broker", key: str | None = None) -> str:
    """How to reach the broker with redis-cli; on a cluster, the node that has this key. The login is left out, since
    this line may be kept in a log. The password of the embedded server is named by its file."""
    from sagastream.broker import urls

    line = urls.redis_cli(broker.url, broker.node_of(key))
    if (server := broker.embedded) is not None and server.endpoint.password:
        return f"REDISCLI_AUTH=$(cat {shlex.quote(str(server.home / 'password'))}) {line}"
    return line


def actor_option(what: str) -> Callable[[_Command], _Command]:
    """Gives a command the option that says who somebody is. `what`: becomes of their name."""

    def named(_context: click.Context, _option: click.Parameter, name: str | None) -> str:
        return user_at_host() if name is None else name

    told = f"Who you are; {what}  [default: your user@host]"
    return click.option("--actor", metavar="NAME", callback=named, help=told)


#: What stands in lines that `show` and others print, where a person is to write their own words.
_PLACEHOLDER: Final = "TEXT"


def reason_option(help_text: str, *, required: bool = True) -> Callable[[_Command], _Command]:
    """Gives a command the option that says why somebody does something."""
    return click.option("--reason", required=required, metavar=_PLACEHOLDER, callback=own_words, help=help_text)


def own_words(_context: click.Context, option: click.Parameter, text: str | None) -> str | None:
    """Checks a text that is kept with the name of its author. Raises WrongUsage if it was copied as it was printed:
    nobody could tell later why something was done."""
    if text == _PLACEHOLDER:
        raise WrongUsage(f"{option.opts[0]}: write your own words in place of {_PLACEHOLDER}")
    return text


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
