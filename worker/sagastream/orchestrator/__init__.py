"""The orchestrator's worker: one turn after the other."""
