"""The application of `gunicorn wsgi:app`."""

from infermux import create_app

app = create_app()
