"""Clients of served models: HTTP requests, their answers, and the probe of a server's features.

The servers are in `agentrm_jax.serve`.
"""
