"""Sagas in OpenTelemetry: spans of sagas and handlers. docs/tracing.md says what they hold."""
