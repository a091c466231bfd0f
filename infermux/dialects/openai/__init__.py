"""OpenAI's wire format, which some twenty other vendors offer too.

Chat completions are read and written in full; legacy completions and embeddings pass between client
and vendor as they are. `upstream` is the vendor's side, `requests` translates
requests of other dialects, `downstream` is the client's side (the OpenAI-compatible API).
"""

from collections.abc import Mapping
from typing import Any

from ..parameters import Kind, Parameters

NAME = "openai"
# InferRequest has this form. Parameters that other dialects share with it are only listed here.
PARAMETERS: Parameters = {
    Kind.HINT: {
        "citations": "form of the answer",
        "client_metadata": "housekeeping",
        "file.filename": "housekeeping",
        "image_url.detail": "price",
        "is_error": "the result's text says it too",
        "messages.annotations": "housekeeping",
        "messages.name": "identity",
        "metadata": "housekeeping",
        "parallel_tool_calls": "speed",
        "prediction": "speed",
        "prompt_cache_key": "caching",
        "prompt_cache_retention": "caching",
        "reasoning_effort": "effort",
        "response_format.strict": "how the schema is enforced",
        "safety_identifier": "identity",
        "server_tools": "the answer after them says what was found",
        "service_tier": "price",
        "store": "housekeeping",
        "stream_options": "every stream has its usage",
        "tools.strict": "how the schema is enforced",
        "user": "identity",
        "verbosity": "effort",
    },
    Kind.PREFERENCE: {
        "frequency_penalty": "sampling",
        "logit_bias": "sampling",
        "min_p": "sampling",
        "presence_penalty": "sampling",
        "repetition_penalty": "sampling",
        "seed": "sampling",
        "temperature": "sampling",
        "top_a": "sampling",
        "top_k": "sampling",
        "top_p": "sampling",
        "typical_p": "sampling",
    },
    Kind.MEANING: {
        "audio": "another answer",
        "function_call": "who acts",
        "functions": "who acts",
        "logprobs": "part of the answer",
        "max_completion_tokens": "the end of the answer",
        "max_tokens": "the end of the answer",
        "modalities": "another answer",
        "moderation": "what may be answered",
        "n": "number of answers",
        "response_format": "form of the answer",
        "stop": "the end of the answer",
        "tool_choice": "who acts",
        "tools": "who acts",
        "top_logprobs": "part of the answer",
        "web_search_options": "where the answer comes from",
    },
}
# Values that ask for what every vendor does anyway.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "audio": ({},),
    "background": (False,),
    "frequency_penalty": (0,),
    "function_call": ("auto", "none"),
    "functions": ([],),
    "include": ([],),
    "logit_bias": ({},),
    "logprobs": (False,),
    "metadata": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "parallel_tool_calls": (True,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}


def is_neutral(name: str, value: object) -> bool:
    """Whether a value is None or asks only for what every vendor does anyway."""
    return value is None or value in NEUTRAL.get(name, ())
