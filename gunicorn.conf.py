"""gunicorn finds this file by itself; the settings are the package's own, so that an installed service has the same."""

from infermux.server import load

globals().update(load())
