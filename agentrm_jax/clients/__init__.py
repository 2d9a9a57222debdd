"""The side that asks: the HTTP client of served models, the probe of what a server does, answers.

The side that answers is `agentrm_jax.serve`.
"""
