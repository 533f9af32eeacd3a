"""The command `sagastream`, until its modules are imported: an interrupt ends it at once, and without a traceback."""

import signal
from typing import NoReturn


def main() -> NoReturn:
    """The command `sagastream`. From here on, an interrupt ends the process, until a command says what else it does."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from sagastream_bridge.commands.main import main as command  # takes 0.1 s

    command()
