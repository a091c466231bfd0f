"""OpenAI's Responses format: the request is a list of items, and so is the answer.

`upstream` is the vendor's side, `requests` writes requests of other dialects, `events` reads
items and streams, `choice` decides between this format and chat completions for each request;
`downstream` is the client's side, `stream` writes its event streams. `reasoning` translates
reasoning items.
"""

from typing import NamedTuple

from ..parameters import Kind, Parameters

NAME = "responses"
DRAWN = "image_generation_call"  # the type of an item
RESOURCE = "resource"  # the operation on what a vendor stores; its params are method and path
PARAMETERS: Parameters = {  # of this format only
    Kind.HINT: {
        "background_options": "speed",
        "client_metadata": "housekeeping",
        "include": "what else the answer repeats",
        "input.code_interpreter_call": "the answer after it says what was found",
        "input.image_generation_call": "an image that the client did not return",
        "input.mcp_call": "the answer after it says what was found",
        "input.file_search_call": "the answer after it says what was found",
        "input.mcp_list_tools": "housekeeping",
        "input.tool_search_call": "the vendor's own tool",
        "input.tool_search_output": "the vendor's own tool",
        "input.words": "words before a call, which only a reference names",
        "input.web_search_call": "the answer after it says what was found",
        "max_tool_calls": "the vendor's own tools",
        "prompt_cache_options": "caching",
        "reasoning.context": "effort",
        "reasoning.mode": "effort",
        "reasoning_summary": "form of the thoughts",
        "tools.namespace": "the vendor's own tool",
        "tools.tool_search": "the vendor's own tool",
        "tools.web_search": "the vendor's own tool",
        "truncation": "the model has its own limit",
    },
    Kind.MEANING: {
        "background": "when the answer comes",
        "conversation": "state at the vendor",
        "item_reference": "state at the vendor",
        "previous_response_id": "state at the vendor",
        "prompt": "state at the vendor",
    },
}


class Support(NamedTuple):
    """How a vendor supports this format, and which models refuse what at chat completions.

    The first four are patterns of models; "" matches none.
    """

    always: str = ""  # that have no chat completions
    tools: str = ""  # that refuse tools there
    effort: str = ""  # that refuse tools together with a reasoning effort there
    stop: str = ""  # that refuse stop sequences there
    form: str = "openai-responses-v1"  # of the vendor's reasoning
    fernet: bool | None = None  # whether its encryption is Fernet, as OpenAI's; None: unknown
    counts: bool = False  # whether it counts a request's tokens
    stores: bool = False  # whether it has conversations
    searches: bool = False  # whether it has web_search
    certain: bool = False  # whether it has this format for certain, as a known vendor
    prefix: str = ""  # of its paths
    query: str = ""


STANDARD = Support()
