"""The orchestrator's worker. It works in turns: read, load, decide, commit."""
