"""`python -m sagastream` is the command line, `sagastream`."""

from importlib.metadata import entry_points

if __name__ == "__main__":
    # By its entry point: the library imports nothing of the bridge, where the command line stands.
    (command,) = entry_points(group="console_scripts", name="sagastream")
    command.load()(prog_name="python -m sagastream")
