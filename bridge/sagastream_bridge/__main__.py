"""`python -m sagastream_bridge` is `sagastream bridge`."""

from sagastream_bridge.commands.main import bridge

if __name__ == "__main__":
    bridge(prog_name="python -m sagastream_bridge")
