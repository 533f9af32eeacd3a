"""`python -m sagastream` is the command line, `sagastream`."""

from importlib.metadata import distribution

if __name__ == "__main__":
    # By its entry point: the library imports nothing of the bridge, where the command line is.
    (command,) = distribution("sagastream").entry_points.select(group="console_scripts", name="sagastream")
    command.load()()
