"""Every edge where the outside meets the streams: the stdin bridge and the command line."""
