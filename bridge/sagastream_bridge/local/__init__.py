"""Workers and services as child processes of one command."""
