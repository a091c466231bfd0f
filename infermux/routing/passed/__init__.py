"""Calls whose bytes pass through: which providers have the endpoints, and whose files are whose."""
