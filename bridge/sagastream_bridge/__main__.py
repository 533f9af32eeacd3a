"""`python -m sagastream_bridge` is `sagastream bridge`."""

import sys

if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the current folder, as in sagastream/__main__.py
    from sagastream_bridge.commands.run import bridge

    bridge()
