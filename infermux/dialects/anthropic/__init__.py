"""Anthropic's wire format: Messages and the counting of their tokens.

`upstream` is the vendor's side, `requests` translates requests of other dialects; `downstream` is
the client's side (the Anthropic-compatible API), and `stream` writes its event streams.
"""

NAME = "anthropic"
