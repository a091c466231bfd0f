"""Hooks that hide mail addresses from vendors and from callers; `infermux help hooks` has them."""

import re

MAIL = re.compile(r"[\w.+-]+@[\w-]+(\.[\w-]+)+")
PERHAPS = re.compile(r"[\w.+-]*(@[\w.-]*)?$")  # may become an address


def hidden(value):
    """Return a text, or every text in a list or an object, without mail addresses."""
    if isinstance(value, str):
        return MAIL.sub("[mail]", value)
    if isinstance(value, list):
        return [hidden(each) for each in value]
    if isinstance(value, dict):
        return {name: hidden(each) for name, each in value.items()}
    return value


def before(request):
    request.messages = hidden(request.messages)
    request.params = hidden(request.params)


def after(answer):
    answer.content, answer.reasoning = hidden(answer.content), hidden(answer.reasoning)
    answer.tool_calls = hidden(answer.tool_calls)


def chunk(chunk, call):
    text = call.state.pop("text", "") + chunk.text
    end = len(text)
    if not chunk.finish_reason and not chunk.tool_calls:  # more may come
        end = PERHAPS.search(text).start()
        call.state["text"] = text[end:]
    return chunk._replace(text=hidden(text[:end]))
