"""The settings that gunicorn finds by itself; an installed service has the same."""

from infermux.server import load

globals().update(load())
