"""Everything between the outside and the streams: the stdin bridge, the command line, tools."""
