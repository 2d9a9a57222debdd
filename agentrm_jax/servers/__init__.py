"""Served models: the client, the probe of what a server does, and its answers."""
