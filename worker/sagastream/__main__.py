"""`python -m sagastream` is the command line, `sagastream`."""

from importlib.metadata import distribution

if __name__ == "__main__":
    # Through its entry point: the command line is in the bridge, and the library imports nothing of that.
    (command,) = distribution("sagastream").entry_points.select(group="console_scripts", name="sagastream")
    command.load()()
