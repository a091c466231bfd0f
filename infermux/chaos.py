"""Proof of a configuration: every fault that a vendor can have, against the router that it builds, and what a client gets.

For each model name the provider that is asked first fails, all others are well, and none of them is a real one. Strategies are set
to priority, so that it is no matter of luck which is first, and times are scaled to a short deadline, so that their proportions stay.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from . import build
from .call import Call
from .config import Config, ProviderConfig
from .errors import ConfigError, InferMuxError
from .faults import AFTER, BEFORE, FAULTS, HEALTHY, Fault
from .protocol import InferRequest
from .providers import PRESETS
from .providers.base import member
from .registry import Registry
from .router import Router
from .schema import Secret, meant
from .settings import Wait
from .testing import FaultyVendor
from .trace import spans as _spans  # noqa: F401
from .settings import Trace

DEADLINE = 5.0                              # seconds: the most that a call may take here
GRACE = 1.0                                 # seconds beyond a deadline that a busy machine may need
LEAST = 0.5                                 # seconds: no time-out is scaled to less
WORKERS = 8                                 # rows at a time: most of their time is spent waiting
WELL = "healthy"                            # the row of a vendor without a fault
WRONG = "SILENTLY WRONG"
_STAND_IN = "vllm"                          # a type without models and prices of its own, for providers that are not behind HTTP
