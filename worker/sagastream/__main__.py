"""`python -m sagastream` is the command line, `sagastream`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder, which Python puts there for -m; which_home.py says why it is not trusted
    from importlib.metadata import distribution

    # Through its entry point: the command line is in the bridge, and the library imports nothing of that.
    (command,) = distribution("sagastream").entry_points.select(group="console_scripts", name="sagastream")
    command.load()()
