"""Anthropic's wire format: the Messages API and its token counting.

`upstream` is the vendor's side, `requests` translates requests of other dialects; `downstream` is
the client's side (the Anthropic-compatible API), and `stream` writes its event streams.
"""

from ..parameters import Kind, Parameters

NAME = "anthropic"
PARAMETERS: Parameters = {  # of this format only
    Kind.HINT: {
        "cache_control": "caching",
        "context_management": "housekeeping",
        "diagnostics": "housekeeping",
        "speed": "price",
        "thinking": "effort",
    },
    Kind.MEANING: {
        "container": "state at the vendor",
        "inference_geo": "where the request may go",
        "mcp_servers": "who acts",
        "output_config": "form of the answer",
        "thread": "state at the vendor",
    },
}
