"""Transport: the way to the broker, and how commands travel. It knows no saga."""
