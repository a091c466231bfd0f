"""InferMux: one router in front of several LLM vendors, with failover, exact cost and traces.

The public API is `__all__`, OTLP (needs infermux[otel]), the modules `infermux.errors`,
`infermux.testing` and `infermux.otel`, and `infermux.server.load` for gunicorn.
Everything else may change without notice.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {  # name: module, loaded on first use: Flask is loaded only if used
    "Budget": "ledger",
    "Caller": "types",
    "Chunk": "types",
    "Deadline": "types",
    "EchoProvider": "providers.echo",
    "FaultyVendor": "testing",
    "HTTPProvider": "providers.http",
    "HookCall": "routing.hooks",
    "HookRefused": "errors",
    "Hooks": "routing.hooks",
    "InferMuxError": "errors",
    "InferRequest": "protocol",
    "InferResponse": "protocol",
    "Message": "protocol",
    "Provider": "providers.base",
    "Registry": "planning.registry",
    "Reporter": "telemetry.tokentrace",
    "Router": "routing.router",
    "Target": "types",
    "TraceSpan": "protocol",
    "Usage": "types",
    "anthropic_blueprint": "web.anthropic",
    "blueprint": "app",
    "create_app": "app",
    "errors": "errors",
    "gemini_blueprint": "web.gemini",
    "load": "build",
    "openai_blueprint": "web.openai",
    "ops_blueprint": "web.admin",
}

__all__ = [*_PUBLIC]
_PUBLIC["OTLP"] = "otel"  # not for `import *`, which must work without the extra

if TYPE_CHECKING:  # the same names for type checkers; a test compares the two
    from . import errors as errors
    from .app import blueprint as blueprint
    from .app import create_app as create_app
    from .build import load as load
    from .errors import HookRefused as HookRefused
    from .errors import InferMuxError as InferMuxError
    from .ledger import Budget as Budget
    from .otel import OTLP as OTLP
    from .planning.registry import Registry as Registry
    from .protocol import InferRequest as InferRequest
    from .protocol import InferResponse as InferResponse
    from .protocol import Message as Message
    from .protocol import TraceSpan as TraceSpan
    from .providers.base import Provider as Provider
    from .providers.echo import EchoProvider as EchoProvider
    from .providers.http import HTTPProvider as HTTPProvider
    from .routing.hooks import HookCall as HookCall
    from .routing.hooks import Hooks as Hooks
    from .routing.router import Router as Router
    from .telemetry.tokentrace import Reporter as Reporter
    from .testing import FaultyVendor as FaultyVendor
    from .types import Caller as Caller
    from .types import Chunk as Chunk
    from .types import Deadline as Deadline
    from .types import Target as Target
    from .types import Usage as Usage
    from .web.admin import ops_blueprint as ops_blueprint
    from .web.anthropic import anthropic_blueprint as anthropic_blueprint
    from .web.gemini import gemini_blueprint as gemini_blueprint
    from .web.openai import openai_blueprint as openai_blueprint


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f".{_PUBLIC[name]}", __name__)
    value = module if name == _PUBLIC[name] else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
