"""Definitions and bodies of sagas, looked at before they run: drawn, checked, and tried in every way."""
