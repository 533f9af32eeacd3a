"""What is stored in Redis: key names, the hash of a saga, the events stream, what services publish."""
