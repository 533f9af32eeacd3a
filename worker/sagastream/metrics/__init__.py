"""Figures for Prometheus: what a process counts, and the port at which it tells."""
