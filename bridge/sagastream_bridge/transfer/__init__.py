"""A store as lines of JSON: written out of one store, read into another, on any server and with any partitions."""
