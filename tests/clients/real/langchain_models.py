"""LangChain's chat models, each with its base URL at the gateway."""

from __future__ import annotations

from typing import Any, NamedTuple

from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import BaseChatModel
from langchain_google_genai import ChatGoogleGenerativeAI
from langchain_openai import ChatOpenAI
from scenarios import BASE_URL, KEY


class Kind(NamedTuple):
    """A class of models, how it is made, and with what it asks for thoughts."""

    of: type[BaseChatModel]
    usual: dict[str, Any]
    thinking: dict[str, Any]

    def __call__(self, model: str, **more: Any) -> Any:
        return self.of(**self.usual, model=model, **more)  # type: ignore[call-arg]


OPENAI = {"base_url": f"{BASE_URL}/v1", "api_key": KEY, "max_retries": 0, "stream_usage": True}
KINDS = {
    "langchain-openai, chat": Kind(ChatOpenAI, OPENAI, {"reasoning_effort": "high"}),
    "langchain-openai, responses": Kind(
        ChatOpenAI,
        OPENAI | {"use_responses_api": True},
        {
            "reasoning": {"effort": "high", "summary": "auto"},
            "include": ["reasoning.encrypted_content"],
            "store": False,
        },
    ),
    "langchain-anthropic": Kind(
        ChatAnthropic,
        {"base_url": BASE_URL, "api_key": KEY, "max_retries": 0},
        {"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 4096},
    ),
    "langchain-google-genai": Kind(
        ChatGoogleGenerativeAI,
        {"base_url": BASE_URL, "google_api_key": KEY, "max_retries": 0},
        {"include_thoughts": True, "thinking_level": "high"},
    ),
}
