"""OpenAI's Responses format: the request is a list of items, and so is the answer.

`upstream` is the vendor's side, `requests` writes requests of other dialects; `downstream` is the
client's side, `stream` writes its event streams. `reasoning` translates reasoning items.
"""

from ..parameters import Kind, Parameters

NAME = "responses"
PARAMETERS: Parameters = {  # of this format only
    Kind.HINT: {
        "background_options": "speed",
        "include": "what else the answer repeats",
        "input.file_search_call": "the answer after it says what was found",
        "input.mcp_list_tools": "housekeeping",
        "input.tool_search_call": "the vendor's own tool",
        "input.tool_search_output": "the vendor's own tool",
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
        "background": "another answer",
        "item_reference": "state at the vendor",
        "prompt": "state at the vendor",
    },
}
