"""Calls whose bytes pass through: the providers of each endpoint, and the owners of files."""
