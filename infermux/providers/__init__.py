"""Providers: the presets of known vendors, one row each, and the types that plug-ins add."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any, NamedTuple

GROUP = "infermux.providers"  # the entry-point group of plug-ins


class Preset(NamedTuple):
    """A vendor: its address, its dialect, the variables of its key, and its own models."""

    base_url: str
    keys: tuple[str, ...]
    models: tuple[str, ...] = ()  # the first one is the default
    pattern: str = ""  # of model ids that only this vendor has
    dialect: str = "openai"
    path: str = ""  # appended to an address without one
    vendor: str = ""  # in the price table; empty: the preset's name
    address: str = ""  # the variable that holds it; empty: <NAME>_BASE_URL


PRESETS: dict[str, Preset] = {
    "openai": Preset(
        "https://api.openai.com/v1",
        ("OPENAI_API_KEY",),
        ("gpt-6-luna", "gpt-6.1-terra", "gpt-6.1-sol"),
        r"(ft:)?gpt-(?!oss)|o[1-9](-|$)|chatgpt-|text-embedding-(3|ada)|omni-moderation|davinci-"
        r"|babbage-",
    ),
    "anthropic": Preset(
        "https://api.anthropic.com/v1",
        ("ANTHROPIC_API_KEY",),
        ("claude-haiku-5-5", "claude-sonnet-5-5", "claude-opus-5-5"),
        r"claude-",
        "anthropic",
        "/v1",
    ),
    "gemini": Preset(
        "https://generativelanguage.googleapis.com/v1beta",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        ("gemini-3.8-flash", "gemini-3.5-flash-lite", "gemini-3.1-pro-preview"),
        r"(models/)?(gemini-|gemma-|text-embedding-00)",
        "gemini",
        "/v1beta",
        "google",
    ),
    "azure": Preset(
        "",
        ("AZURE_OPENAI_API_KEY",),
        dialect="azure",
        path="/openai?api-version=2024-10-21",
        address="AZURE_OPENAI_ENDPOINT",
    ),
    "mistral": Preset(
        "https://api.mistral.ai/v1",
        ("MISTRAL_API_KEY",),
        ("mistral-medium-latest", "mistral-small-latest"),
        r"(open-)?(mistral|mixtral|magistral|codestral|ministral|pixtral|devstral)-",
    ),
    "deepseek": Preset(
        "https://api.deepseek.com/v1",
        ("DEEPSEEK_API_KEY",),
        ("deepseek-flash", "deepseek-v4-pro"),
        r"deepseek-[^/]*$",
    ),
    "xai": Preset("https://api.x.ai/v1", ("XAI_API_KEY",), ("grok-4.7", "grok-4.3"), r"grok-"),
    "perplexity": Preset(
        "https://api.perplexity.ai",
        ("PERPLEXITY_API_KEY", "PPLX_API_KEY"),
        ("sonar", "sonar-pro"),
        r"sonar",
    ),
    "moonshot": Preset(
        "https://api.moonshot.ai/v1",
        ("MOONSHOT_API_KEY",),
        ("kimi-k3", "kimi-k2.6"),
        r"kimi-|moonshot-",
    ),
    "zai": Preset(
        "https://api.z.ai/api/paas/v4",
        ("ZAI_API_KEY", "ZHIPU_API_KEY"),
        ("glm-5.1", "glm-4.7-flash"),
        r"glm-",
    ),
    "dashscope": Preset(
        "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        ("DASHSCOPE_API_KEY",),
        ("qwen-plus", "qwen3.8-max"),
        r"(qwen|qwq)[^/:]*$",
    ),
    "cohere": Preset(
        "https://api.cohere.ai/compatibility/v1",
        ("COHERE_API_KEY",),
        ("command-a-03-2025",),
        r"command-|c4ai-",
    ),
    "minimax": Preset(
        "https://api.minimax.io/v1",
        ("MINIMAX_API_KEY",),
        ("MiniMax-M3", "MiniMax-M2.7"),
        r"MiniMax-M",
    ),
    "groq": Preset(
        "https://api.groq.com/openai/v1",
        ("GROQ_API_KEY",),
        ("openai/gpt-oss-120b", "openai/gpt-oss-20b"),
    ),
    "cerebras": Preset(
        "https://api.cerebras.ai/v1", ("CEREBRAS_API_KEY",), ("gpt-oss-120b", "qwen-3.8-27b")
    ),
    "together": Preset(
        "https://api.together.ai/v1",
        ("TOGETHER_API_KEY",),
        ("openai/gpt-oss-120b", "openai/gpt-oss-20b"),
    ),
    "fireworks": Preset(
        "https://api.fireworks.ai/inference/v1",
        ("FIREWORKS_API_KEY",),
        ("accounts/fireworks/models/kimi-k3", "accounts/fireworks/models/gpt-oss-120b"),
        r"accounts/fireworks/",
    ),
    "openrouter": Preset(
        "https://openrouter.ai/api/v1",
        ("OPENROUTER_API_KEY",),
        ("openai/gpt-oss-120b", "moonshotai/kimi-k3"),
    ),
    "vercel": Preset(
        "https://ai-gateway.vercel.sh/v1", ("AI_GATEWAY_API_KEY",), ("openai/gpt-5.5",)
    ),
    "huggingface": Preset(
        "https://router.huggingface.co/v1", ("HF_TOKEN",), ("deepseek-ai/DeepSeek-R1",)
    ),
    "nvidia": Preset(
        "https://integrate.api.nvidia.com/v1",
        ("NVIDIA_API_KEY", "NVIDIA_NIM_API_KEY"),
        ("nvidia/nemotron-3-super-120b-a12b",),
    ),
    "sambanova": Preset(
        "https://api.sambanova.ai/v1",
        ("SAMBANOVA_API_KEY",),
        ("Meta-Llama-3.3-70B-Instruct", "gpt-oss-120b"),
    ),
    "deepinfra": Preset(
        "https://api.deepinfra.com/v1/openai",
        ("DEEPINFRA_API_KEY", "DEEPINFRA_API_TOKEN"),
        ("deepseek-ai/DeepSeek-V4-Flash-0731",),
    ),
    "novita": Preset(
        "https://api.novita.ai/openai/v1", ("NOVITA_API_KEY",), ("zai-org/glm-5.3-flash",)
    ),
    "hyperbolic": Preset(
        "https://api.hyperbolic.xyz/v1",
        ("HYPERBOLIC_API_KEY",),
        ("meta-llama/Llama-3.3-70B-Instruct",),
    ),
    "nebius": Preset(
        "https://api.tokenfactory.nebius.com/v1", ("NEBIUS_API_KEY",), ("openai/gpt-oss-120b",)
    ),
    "baseten": Preset(
        "https://inference.baseten.co/v1", ("BASETEN_API_KEY",), ("zai-org/GLM-4.7",)
    ),
    "ollama": Preset(
        "http://127.0.0.1:11434/v1",
        ("OLLAMA_HOST",),
        ("llama3.2",),
        r"(?!ft:)[\w.-]+:[\w.-]+$",
        path="/v1",
    ),
    "vllm": Preset("http://127.0.0.1:8000/v1", ("VLLM_BASE_URL",), path="/v1"),
    "lmstudio": Preset("http://127.0.0.1:1234/v1", ("LMSTUDIO_BASE_URL",), path="/v1"),
    "llamacpp": Preset("http://127.0.0.1:8080/v1", ("LLAMACPP_BASE_URL",), path="/v1"),
}


def plugin(type: str) -> Callable[[Any], Any] | None:
    """Return the callable that an installed package registers for a provider type, or None."""
    entries = importlib.metadata.entry_points(group=GROUP, name=type)
    return next((entry.load() for entry in entries), None)


def plugins() -> list[str]:
    """Return the provider types that installed packages register."""
    return sorted({entry.name for entry in importlib.metadata.entry_points(group=GROUP)})
