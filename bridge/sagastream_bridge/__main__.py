"""`python -m sagastream_bridge` is `sagastream bridge`."""

from sagastream_bridge.cli import bridge

if __name__ == "__main__":
    bridge(prog_name="python -m sagastream_bridge")
