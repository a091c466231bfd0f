"""Providers: the presets of known vendors, one row each, and the types that plug-ins add.

`http` calls a vendor, over the connections of `transport`; `passing` does it for bytes that pass
through. `credentials` chooses the API key, `failures` and `redaction` make errors.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ..dialects.responses import STANDARD, Support

GROUP = "infermux.providers"  # the entry-point group of plug-ins


class Preset(NamedTuple):
    """A vendor's address, dialect, models, and the environment variables of address and key."""

    base_url: str
    models: tuple[str, ...] = ()  # the first one is the default
    pattern: str = ""  # of model ids that only this vendor has
    dialect: str = "openai"
    path: str = ""  # appended to an address without one
    vendor: str = ""  # in the price table; empty: the preset's name
    address: str = ""  # the variable of the address; empty: <NAME>_BASE_URL
    keys: tuple[str, ...] = ()  # the variables of its key; empty: <NAME>_API_KEY
    label: str = ""  # its name as people write it
    responses: Support | None = None  # how it supports Responses; None: it does not
    thoughtless: str = ""  # pattern of models that refuse to be asked for reasoning
    auth: str = ""  # "bearer": the key goes into Authorization, whatever the dialect is
    # what it has of images, audio, files and so on; "", or its path if it is not the usual one
    endpoints: Mapping[str, str] = {}


# OpenAI's models: those without chat completions, and those that refuse tools there (all, or with
# a reasoning effort).
_OPENAI = Support(
    r"(ft:)?(gpt-|o\d|chatgpt-)(.*-)?(pro|codex|deep-research)\b|codex-|computer-use-",
    r"(ft:)?gpt-(5\.([6-9]|\d\d)|[6-9]|\d\d)",
    r"(ft:)?gpt-5\.[45]\b",
    fernet=True,
    stores=True,
    searches=True,
)

_AZURE = Preset(
    "",
    dialect="azure",
    path="/openai?api-version=2024-10-21",
    address="AZURE_OPENAI_ENDPOINT",
    keys=("AZURE_OPENAI_API_KEY",),
    responses=_OPENAI._replace(prefix="/v1", query="api-version=v1"),
)
_PRESETS = {
    "openai": Preset(
        "https://api.openai.com/v1",
        ("gpt-6-luna", "gpt-6.1-terra", "gpt-6.1-sol"),
        r"(ft:)?gpt-(?!oss)|o[1-9](-|$)|chatgpt-|text-embedding-(3|ada)|(omni|text)-moderation"
        r"|davinci-|babbage-|dall-e-|tts-1|whisper-1$",
        responses=_OPENAI._replace(counts=True),
    ),
    "anthropic": Preset(
        "https://api.anthropic.com/v1",
        ("claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"),
        r"claude-",
        "anthropic",
        "/v1",
    ),
    "gemini": Preset(
        "https://generativelanguage.googleapis.com/v1beta",
        ("gemini-3.8-flash", "gemini-3.5-flash-lite", "gemini-3.1-pro-preview"),
        r"(models/)?(gemini-|gemma-|text-embedding-00)",
        "gemini",
        "/v1beta",
        "google",
        thoughtless=r"(models/)?(gemini-(1|2\.0)|gemma-[1-3]|learnlm)",
        keys=("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    ),
    "azure": _AZURE,
    # the same with a token of Entra, which is a bearer token; the variable is the official SDK's
    # (https://learn.microsoft.com/azure/ai-services/openai/how-to/managed-identity)
    "azure_entra": _AZURE._replace(vendor="azure", keys=("AZURE_OPENAI_AD_TOKEN",), auth="bearer"),
    # its endpoint with OpenAI's format takes an API key of Bedrock as a bearer token
    # (https://docs.aws.amazon.com/bedrock/latest/userguide/inference-chat-completions.html)
    "bedrock": Preset(
        "https://bedrock-runtime.us-east-1.amazonaws.com/openai/v1",
        ("openai.gpt-oss-120b-1:0", "openai.gpt-oss-20b-1:0"),
        path="/openai/v1",
        address="AWS_BEDROCK_BASE_URL",
        keys=("AWS_BEARER_TOKEN_BEDROCK",),
        responses=None,
    ),
    # its endpoint with OpenAI's format takes a token of Google Cloud
    # (cloud.google.com/vertex-ai/generative-ai/docs/multimodal/call-vertex-using-openai-library)
    "vertex": Preset(
        "",
        ("google/gemini-3.5-flash", "google/gemini-2.5-pro"),
        vendor="google",
        keys=("VERTEX_ACCESS_TOKEN",),
    ),
    "mistral": Preset(
        "https://api.mistral.ai/v1",
        ("mistral-medium-latest", "mistral-small-latest"),
        r"(open-)?(mistral|mixtral|magistral|codestral|ministral|pixtral|devstral|voxtral)-",
    ),
    "deepseek": Preset(
        "https://api.deepseek.com/v1",
        ("deepseek-flash", "deepseek-v4-pro"),
        r"deepseek-[^/]*$",
        responses=STANDARD,
    ),
    "xai": Preset(
        "https://api.x.ai/v1",
        ("grok-4.7", "grok-4.3"),
        r"grok-",
        responses=Support(
            r"grok-.*multi-agent", form="xai-responses-v1", fernet=False, searches=True
        ),
    ),
    "perplexity": Preset(
        "https://api.perplexity.ai",
        ("sonar", "sonar-pro"),
        r"sonar",
        keys=("PERPLEXITY_API_KEY", "PPLX_API_KEY"),
    ),
    "moonshot": Preset(
        "https://api.moonshot.ai/v1",
        ("kimi-k3", "kimi-k2.6"),
        r"kimi-|moonshot-",
    ),
    "zai": Preset(
        "https://api.z.ai/api/paas/v4",
        ("glm-5.1", "glm-4.7-flash"),
        r"glm-",
        keys=("ZAI_API_KEY", "ZHIPU_API_KEY"),
    ),
    "dashscope": Preset(
        "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        ("qwen-plus", "qwen3.8-max"),
        r"(qwen|qwq)[^/:]*$",
    ),
    "cohere": Preset(
        "https://api.cohere.ai/compatibility/v1",
        ("command-a-03-2025",),
        r"command-|c4ai-|rerank-",
    ),
    "minimax": Preset(
        "https://api.minimax.io/v1",
        ("MiniMax-M3", "MiniMax-M2.7"),
        r"MiniMax-M",
    ),
    "groq": Preset(
        "https://api.groq.com/openai/v1",
        ("openai/gpt-oss-120b", "openai/gpt-oss-20b"),
        responses=STANDARD,
        thoughtless=r"(meta-llama/)?llama-|gemma|mixtral|mistral|moonshotai/|compound",
    ),
    "cerebras": Preset("https://api.cerebras.ai/v1", ("gpt-oss-120b", "qwen-3.8-27b")),
    "together": Preset(
        "https://api.together.ai/v1",
        ("openai/gpt-oss-120b", "openai/gpt-oss-20b"),
    ),
    "fireworks": Preset(
        "https://api.fireworks.ai/inference/v1",
        ("accounts/fireworks/models/kimi-k3", "accounts/fireworks/models/gpt-oss-120b"),
        r"accounts/fireworks/",
        responses=STANDARD,
    ),
    "openrouter": Preset(
        "https://openrouter.ai/api/v1",
        ("openai/gpt-oss-120b", "moonshotai/kimi-k3"),
        responses=Support(searches=True),
    ),
    "vercel": Preset(
        "https://ai-gateway.vercel.sh/v1",
        ("openai/gpt-5.5",),
        keys=("AI_GATEWAY_API_KEY",),
        responses=STANDARD,
    ),
    "huggingface": Preset(
        "https://router.huggingface.co/v1",
        ("deepseek-ai/DeepSeek-R1",),
        keys=("HF_TOKEN",),
        responses=STANDARD,
    ),
    "nvidia": Preset(
        "https://integrate.api.nvidia.com/v1",
        ("nvidia/nemotron-3-super-120b-a12b",),
        keys=("NVIDIA_API_KEY", "NVIDIA_NIM_API_KEY"),
    ),
    "sambanova": Preset(
        "https://api.sambanova.ai/v1",
        ("Meta-Llama-3.3-70B-Instruct", "gpt-oss-120b"),
    ),
    "deepinfra": Preset(
        "https://api.deepinfra.com/v1/openai",
        ("deepseek-ai/DeepSeek-V4-Flash-0731",),
        keys=("DEEPINFRA_API_KEY", "DEEPINFRA_API_TOKEN"),
    ),
    "novita": Preset("https://api.novita.ai/openai/v1", ("zai-org/glm-5.3-flash",)),
    "hyperbolic": Preset(
        "https://api.hyperbolic.xyz/v1",
        ("meta-llama/Llama-3.3-70B-Instruct",),
    ),
    "nebius": Preset("https://api.tokenfactory.nebius.com/v1", ("openai/gpt-oss-120b",)),
    "baseten": Preset("https://inference.baseten.co/v1", ("zai-org/GLM-4.7",)),
    "ollama": Preset(
        "http://127.0.0.1:11434/v1",
        ("llama3.2",),
        r"(?!ft:)[\w.-]+:[\w.-]+$",
        path="/v1",
        keys=("OLLAMA_HOST",),
        # those that think; the others answer 400
        thoughtless=r"(?i)(?!.*(gpt-oss|qwen-?[3-9]|qwq|deepseek-(r1|v3\.[1-9]|v[4-9])|magistral|"
        r"thinking|reason|cogito|smollm3|glm-[4-9]|kimi|minimax|granite[34]|nemotron|exaone-deep|"
        r"gemma[4-9]|openthinker|phi4-mini-reasoning))",
        responses=STANDARD,
    ),
    **{
        name: Preset(
            f"http://127.0.0.1:{port}/v1",
            path="/v1",
            keys=(f"{name.upper()}_BASE_URL",),
            responses=STANDARD,
        )
        for name, port in (("vllm", 8000), ("lmstudio", 1234), ("llamacpp", 8080))
    },
}
_LABELS = {
    "openai": "OpenAI",
    "azure_entra": "Azure with Entra",
    "bedrock": "Amazon Bedrock",
    "vertex": "Vertex AI",
    "gemini": "Google",
    "deepseek": "DeepSeek",
    "xai": "xAI",
    "zai": "Z.ai",
    "dashscope": "Alibaba",
    "minimax": "MiniMax",
    "openrouter": "OpenRouter",
    "huggingface": "Hugging Face",
    "nvidia": "NVIDIA",
    "sambanova": "SambaNova",
    "deepinfra": "DeepInfra",
    "vllm": "vLLM",
    "lmstudio": "LM Studio",
    "llamacpp": "llama.cpp",
}
_FILES = ("files", "batches")
_IMAGES = ("images/generations", "images/edits")
_HEARING = ("audio/transcriptions", "audio/translations")
_AUDIO = ("audio/speech", *_HEARING)
_ENDPOINTS: dict[str, tuple[str, ...]] = {
    "openai": (*_IMAGES, "images/variations", *_AUDIO, "moderations", *_FILES),
    "azure": (*_IMAGES, *_AUDIO, *_FILES),
    "mistral": ("audio/transcriptions", "moderations", "files"),
    "xai": (*_IMAGES, "files"),
    "moonshot": ("files",),
    "zai": ("images/generations", "audio/transcriptions"),
    "dashscope": _FILES,
    "groq": (*_AUDIO, *_FILES),
    "together": ("images/generations", *_AUDIO, "rerank"),
    "fireworks": ("rerank",),
    "openrouter": ("rerank",),
    "sambanova": _HEARING,
    "deepinfra": (*_IMAGES, "images/variations", *_AUDIO),
    "novita": ("rerank",),
    "nebius": ("images/generations",),
    "ollama": ("images/generations",),
    "vllm": (*_IMAGES, *_AUDIO, "rerank"),
    "llamacpp": ("audio/transcriptions", "rerank"),
}
_PATHS = {"cohere": {"rerank": "~/v2/rerank"}}  # ~: of the host, not of the base address
PRESETS: dict[str, Preset] = {
    name: preset._replace(
        endpoints=_PATHS.get(name) or dict.fromkeys(_ENDPOINTS.get(name, ()), ""),
        keys=preset.keys or (f"{name.upper()}_API_KEY",),
        label=_LABELS.get(name, name.capitalize()),
    )
    for name, preset in _PRESETS.items()
}


def owner(name: str) -> str:
    """Return the vendor that *name* means: a preset, PRESET/MODEL or its own model; or ""."""
    first = name.partition("/")[0]
    if first in PRESETS:
        return first
    vendors = (key for key, each in PRESETS.items() if not each.keys[0].endswith("_HOST"))
    found = (key for key in vendors if (own := PRESETS[key].pattern) and re.match(own, name[:200]))
    return next(found, "")


def plugin(type: str) -> Callable[[Any], Any] | None:
    """Return the callable that an installed package registers for a provider type, or None."""
    entries = importlib.metadata.entry_points(group=GROUP, name=type)
    return next((entry.load() for entry in entries), None)


def plugins() -> list[str]:
    """Return the provider types that installed packages register."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})
