"""Sagas and stores looked up for people."""
