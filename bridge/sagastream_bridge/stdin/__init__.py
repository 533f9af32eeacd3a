"""The stdin protocol: JSON lines to the streams, and back."""
