"""The codec that sagastream brings along, and where a process gets its codec from."""
