"""`python -m sagastream_bridge` is `sagastream bridge`."""

from sagastream_bridge.commands.run import bridge

if __name__ == "__main__":
    bridge()
