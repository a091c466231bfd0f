"""InferMux: one router in front of several LLM vendors, with failover, exact cost and traces."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .app import blueprint, create_app
    from .build import load
    from .errors import InferMuxError
    from .planning.registry import Registry
    from .protocol import InferRequest, InferResponse, Message, TraceSpan
    from .providers.base import Provider
    from .providers.echo import EchoProvider
    from .providers.http import HTTPProvider
    from .routing.router import Router
    from .telemetry.tokentrace import Reporter
    from .types import Caller, Chunk, Deadline, Target, Usage
    from .web.anthropic import blueprint as anthropic_blueprint
    from .web.openai import blueprint as openai_blueprint
    from .web.ops import blueprint as ops_blueprint

_HOMES = {  # loaded on first use: neither Flask nor requests costs who needs neither
    "Caller": "types",
    "Chunk": "types",
    "Deadline": "types",
    "EchoProvider": "providers.echo",
    "HTTPProvider": "providers.http",
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
    "anthropic_blueprint": "web.anthropic:blueprint",
    "blueprint": "app",
    "create_app": "app",
    "load": "build",
    "openai_blueprint": "web.openai:blueprint",
    "ops_blueprint": "web.ops:blueprint",
}

__all__ = [
    "Caller",
    "Chunk",
    "Deadline",
    "EchoProvider",
    "HTTPProvider",
    "InferMuxError",
    "InferRequest",
    "InferResponse",
    "Message",
    "Provider",
    "Registry",
    "Reporter",
    "Router",
    "Target",
    "TraceSpan",
    "Usage",
    "anthropic_blueprint",
    "blueprint",
    "create_app",
    "load",
    "openai_blueprint",
    "ops_blueprint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].partition(":")
    value = getattr(importlib.import_module(f".{module}", __name__), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
