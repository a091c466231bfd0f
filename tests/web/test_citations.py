"""Web citations and drawn images between all formats, whole and streamed, and the vendors' search."""

import contextlib
import json
from dataclasses import replace

import pytest
from doors import PICTURE, Front, Vendor, reply, stream

FIRST, REST = "In Köln regnet es. 🌦 ", "Morgen scheint die Sonne."
TEXT = FIRST + REST
URL, TITLE, SAID = "https://wetter.example/köln", "Wetter", "Regen in Köln"
SPAN = (0, len("In Köln regnet es."))
CITED = TEXT[: SPAN[1]]
PNG = f"data:image/png;base64,{PICTURE}"
VENDORS = ("openai", "responses", "anthropic", "gemini")
DOORS = ("chat", "responses", "anthropic", "gemini")
both_ways = pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
every_door = pytest.mark.parametrize("door", DOORS)
every_vendor = pytest.mark.parametrize("vendor", VENDORS)


def event(body, name=""):
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(body)}\n\n".encode()


def places(start=SPAN[0], end=SPAN[1]):
    return {"start_index": start, "end_index": end, "url": URL, "title": TITLE}


# -- what vendors answer ---------------------------------------------------------------------------


def openai_says(images):
    cited = [{"type": "url_citation", "url_citation": places()}]
    drawn = {"images": [{"type": "image_url", "image_url": {"url": PNG}}]} if images else {}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    head = {"id": "chatcmpl-1", "created": 1, "model": "gpt-x"}

    def piece(delta, finish=None):
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return event(head | {"object": "chat.completion.chunk", "choices": [choice]})

    message = {"role": "assistant", "content": TEXT, "refusal": None, "annotations": cited} | drawn
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    whole = head | {"object": "chat.completion", "choices": [choice], "usage": usage}
    return whole, [
        *(piece({"content": text}) for text in (FIRST, REST)),
        piece({"annotations": cited} | drawn),
        piece({}, "stop"),
        event(head | {"object": "chat.completion.chunk", "choices": [], "usage": usage}),
        b"data: [DONE]\n\n",
    ]


def responses_says(images):
    """Say the text in two parts: the second one is cited, too, by its own indices."""
    cited = {"type": "url_citation"} | places()
    sun = {"type": "url_citation"} | places(0, len(REST))
    file = {"type": "file_citation", "file_id": "f", "filename": "a.txt", "index": 3}
    parts = [
        {"type": "output_text", "text": FIRST, "annotations": [cited]},
        {"type": "output_text", "text": REST, "annotations": [sun, file]},
    ]
    message = {"type": "message", "id": "msg_1", "role": "assistant", "content": parts}
    call = {"type": "image_generation_call", "id": "ig_1", "status": "completed"}
    call |= {"output_format": "png", "result": PICTURE}
    output = [message | {"status": "completed"}, *([call] if images else [])]
    usage = {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    body = {"id": "resp_1", "object": "response", "created_at": 1, "model": "gpt-x"}
    whole = body | {"status": "completed", "output": output, "usage": usage}

    def step(name, **members):
        return event({"type": name} | members, name)

    at = {"item_id": "msg_1", "output_index": 0}
    events = [
        step("response.created", response=body | {"status": "in_progress", "output": []}),
        step("response.output_item.added", output_index=0, item=message | {"content": []}),
    ]
    for number, part in enumerate(parts):
        here = at | {"content_index": number}
        empty = part | {"text": "", "annotations": []}
        events.append(step("response.content_part.added", part=empty, **here))
        events.append(step("response.output_text.delta", delta=part["text"], **here))
        events += [
            step("response.output_text.annotation.added", annotation=each, **here)
            for each in part["annotations"]
        ]
        events.append(step("response.output_text.done", text=part["text"], **here))
        events.append(step("response.content_part.done", part=part, **here))
    events.append(step("response.output_item.done", output_index=0, item=output[0]))
    if images:
        begun = {"type": call["type"], "id": "ig_1", "status": "in_progress"}
        events.append(step("response.output_item.added", output_index=1, item=begun))
        events.append(step("response.output_item.done", output_index=1, item=call))
    return whole, [*events, step("response.completed", response=whole)]


def anthropic_says(images):
    cited = {"type": "web_search_result_location", "cited_text": SAID, "encrypted_index": "x"}
    cited |= {"url": URL, "title": TITLE}
    page = {"type": "page_location", "cited_text": "c", "document_index": 0, "document_title": "d"}
    page |= {"start_page_number": 1, "end_page_number": 2}
    texts = [(CITED, [cited]), (TEXT[SPAN[1] :], [page])]
    blocks = [{"type": "text", "text": text, "citations": found} for text, found in texts]
    search = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
    result = {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x"}
    usage = {"input_tokens": 3, "output_tokens": 4}
    end = {"stop_reason": "end_turn", "stop_sequence": None}
    whole = head | {"content": [search, result, *blocks], "usage": usage} | end

    def step(name, **members):
        return event({"type": name} | members, name)

    begun = head | {"content": [], "usage": usage, "stop_reason": None, "stop_sequence": None}
    events = [step("message_start", message=begun)]
    for index, block in enumerate((search, result)):
        events.append(step("content_block_start", index=index, content_block=block))
        events.append(step("content_block_stop", index=index))
    for index, block in enumerate(blocks, 2):
        empty = {"type": "text", "text": "", "citations": []}
        events.append(step("content_block_start", index=index, content_block=empty))
        deltas = [{"type": "citations_delta", "citation": each} for each in block["citations"]]
        deltas.append({"type": "text_delta", "text": block["text"]})
        events += [step("content_block_delta", index=index, delta=delta) for delta in deltas]
        events.append(step("content_block_stop", index=index))
    return whole, [*events, step("message_delta", delta=end, usage=usage), step("message_stop")]


def gemini_says(images):
    size = len(CITED.encode())
    found = {
        "groundingChunks": [{"web": {"uri": URL, "title": TITLE}}, {"retrievedContext": {}}],
        "groundingSupports": [
            {"segment": {"endIndex": size, "text": CITED}, "groundingChunkIndices": [0, 1, 9]}
        ],
        "webSearchQueries": ["wetter"],
    }
    drawn = [{"inlineData": {"mimeType": "image/png", "data": PICTURE}}] if images else []
    usage = {"promptTokenCount": 3, "candidatesTokenCount": 4, "totalTokenCount": 7}

    def body(parts, **more):
        candidate = {"content": {"parts": parts, "role": "model"}, "index": 0} | more
        return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "gemini-x"}

    last = {"finishReason": "STOP", "groundingMetadata": found}
    return body([{"text": TEXT}, *drawn], **last), [
        event(body([{"text": FIRST}])),
        event(body([{"text": REST}, *drawn], **last)),
        event(body([{"text": ""}], **last)),
    ]


SAYS = {
    "openai": openai_says,
    "responses": responses_says,
    "anthropic": anthropic_says,
    "gemini": gemini_says,
}


# -- what clients read -----------------------------------------------------------------------------


def read_chat(data, streamed):
    """Return (text, [(start, end, url, title)], images)."""
    if streamed:
        said = [each["choices"][0]["delta"] for each in events(data) if each["choices"]]
        for name in ("annotations", "images"):  # without it the official SDK cannot join them
            numbers = [one["index"] for each in said for one in each.get(name) or ()]
            assert numbers == list(range(len(numbers)))
    else:
        said = [json.loads(data)["choices"][0]["message"]]
    cited = [one["url_citation"] for each in said for one in each.get("annotations") or ()]
    images = [one["image_url"]["url"] for each in said for one in each.get("images") or ()]
    return "".join(each.get("content") or "" for each in said), flat(cited), images


def read_responses(data, streamed):
    body = json.loads(data) if not streamed else None
    if streamed:
        found = events(data)
        assert [each["sequence_number"] for each in found] == list(range(len(found)))
        body = found[-1]["response"]
        told = [each for each in found if each["type"].endswith("annotation.added")]
        done = [each["item"] for each in found if each["type"] == "response.output_item.done"]
        assert done == body["output"]
        parts = [part for item in done for part in item.get("content") or ()]
        assert [each["annotation"] for each in told] == [
            one for part in parts for one in part["annotations"]
        ]
    text, cited, images = "", [], []
    for item in body["output"]:
        if item["type"] == "image_generation_call":
            images.append(f"data:image/{item['output_format']};base64,{item['result']}")
        for part in item.get("content") or ():
            shift = len(text)
            text += part["text"]
            for one in part["annotations"]:
                assert one["type"] == "url_citation"
                cited.append(one | {n: one[n] + shift for n in ("start_index", "end_index")})
    return text, flat(cited), images


def read_anthropic(data, streamed):
    if streamed:
        blocks = []
        for each in events(data):
            if each["type"] == "content_block_start":
                blocks.append(each["content_block"])
            elif each["type"] == "content_block_delta":
                delta = each["delta"]
                if "text" in delta:
                    blocks[-1]["text"] += delta["text"]
                if "citation" in delta:
                    blocks[-1].setdefault("citations", []).append(delta["citation"])
    else:
        blocks = json.loads(data)["content"]
    text, cited = "", []
    for block in blocks:
        assert block["text"].strip()
        start, text = len(text), text + block["text"]
        cited += [
            (start, len(text), one["url"], one["title"]) for one in block.get("citations", ())
        ]
    return text, cited, []


def read_gemini(data, streamed):
    found = events(data) if streamed else [json.loads(data)]
    candidates = [each["candidates"][0] for each in found]
    parts = [part for each in candidates for part in each["content"]["parts"]]
    text = "".join(part.get("text", "") for part in parts)
    images = [part["inlineData"] for part in parts if "inlineData" in part]
    told = candidates[-1].get("groundingMetadata", {})
    cited = []
    for support in told.get("groundingSupports", ()):
        segment = support["segment"]
        start, end = segment.get("startIndex", 0), segment["endIndex"]
        before, words = text.encode()[:start].decode(), text.encode()[start:end].decode()
        assert words == segment["text"]
        for number in support["groundingChunkIndices"]:
            web = told["groundingChunks"][number]["web"]
            cited.append((len(before), len(before + words), web["uri"], web["title"]))
    return text, cited, [f"data:{one['mimeType']};base64,{one['data']}" for one in images]


READ = {
    "chat": read_chat,
    "responses": read_responses,
    "anthropic": read_anthropic,
    "gemini": read_gemini,
}


def events(data):
    lines = (line[5:].strip() for line in data.decode().split("\n") if line.startswith("data:"))
    return [json.loads(line) for line in lines if line != "[DONE]"]


def flat(cited):
    return [(one["start_index"], one["end_index"], one["url"], one["title"]) for one in cited]


# -- doors -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vendors():
    kinds = {name: "openai" if name == "responses" else name for name in VENDORS}
    with contextlib.ExitStack() as stack:
        yield {name: stack.enter_context(Vendor(kind)) for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def front(vendors):
    made = [
        vendors["openai"].provider(api="chat"),
        vendors["responses"].provider("responses", api="responses"),
        vendors["anthropic"].provider(),
        vendors["gemini"].provider(),
    ]
    with Front(*made) as running:
        yield running


def model_of(vendor):
    kind = "openai" if vendor == "responses" else vendor
    return f"{vendor}/" + {"openai": "gpt-asked", "anthropic": "claude-asked"}.get(
        kind, "gemini-asked"
    )


def ask(front, door, model, streamed=False, question="Wetter?", **more):
    turns = question if isinstance(question, list) else [{"role": "user", "content": question}]
    body = {"model": model, "stream": streamed}
    if door == "gemini":
        verb = "streamGenerateContent?alt=sse" if streamed else "generateContent"
        body = {"contents": [{"role": "user", "parts": [{"text": question}]}]}
        return front.ask(f"/v1beta/models/{model}:{verb}", body | more)
    if door == "responses":
        return front.ask("/v1/responses", body | {"input": turns} | more)
    if door == "anthropic":
        return front.ask("/v1/messages", body | {"messages": turns, "max_tokens": 9} | more)
    return front.ask("/v1/chat/completions", body | {"messages": turns} | more)


@both_ways
@every_door
@pytest.mark.parametrize("named", [False, True])
def test_sources_beside_the_message_are_citations(front, vendors, door, named, streamed):
    """Perplexity has them there; its answers refer to them by number."""
    words = ("In Köln regnet es", "[2]. Morgen", " scheint die Sonne[1][2][7].")
    urls = ["https://eins.example/", "https://zwei.example/"]
    results = [{"url": url, "title": f"T{n}", "snippet": "s"} for n, url in enumerate(urls)]
    found = {"citations": urls} | ({"search_results": results} if named else {})
    head = {"id": "c", "model": "sonar", "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    message = {"role": "assistant", "content": "".join(words)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    parts = [
        head | {"choices": [{"index": 0, "delta": {"content": each}, "finish_reason": None}]}
        for each in words
    ]
    parts.append(head | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    whole = reply(head | found | {"choices": [choice]})
    vendors["openai"].script(
        stream(*(event(each | found) for each in parts)) if streamed else whole
    )
    answer = ask(front, door, model_of("openai"), streamed)
    if door == "chat":
        assert urls[0].encode() in answer.data
        return  # the vendor's own
    text, cited, _ = READ[door](answer.data, streamed)
    assert text == message["content"]
    names = ["T0", "T1"] if named else ["", ""]
    wanted = [("[2]", 1), ("[1]", 0), ("[2]", 1)]
    if door == "anthropic" and streamed:  # there all the text is one block
        assert {each[2:] for each in cited} == {*zip(urls, names, strict=True)}
    else:
        assert [(text[start:end], url, title) for start, end, url, title in cited] == [
            (mark, urls[n], names[n]) for mark, n in wanted
        ]


def test_sources_without_numbers_are_those_of_the_whole(front, vendors):
    message = {"role": "assistant", "content": TEXT}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    sources = {"citations": [URL, "no address", 7]}
    vendors["openai"].script(reply({"id": "c", "choices": [choice]} | sources))
    answer = ask(front, "responses", model_of("openai"))
    assert read_responses(answer.data, False)[1] == [(0, len(TEXT), URL, "")]


@both_ways
@every_vendor
@every_door
def test_citations_arrive_in_the_clients_form(front, vendors, door, vendor, streamed):
    whole, parts = SAYS[vendor](images=False)
    vendors[vendor].script(stream(*parts) if streamed else reply(whole))
    answer = ask(front, door, model_of(vendor), streamed)
    assert answer.status == 200, answer.data
    if door == vendor or (door, vendor) == ("chat", "openai"):
        return  # the vendor's own bytes: see the next test
    text, cited, images = READ[door](answer.data, streamed)
    assert text == TEXT and images == []
    wanted = [(*SPAN, URL, TITLE)]
    if vendor == "responses":
        wanted.append((len(FIRST), len(TEXT), URL, TITLE))
    if door == "anthropic":  # of a whole block; of a stream, of what was said since the last
        urls = [(url, title) for _, _, url, title in cited]
        assert urls == [(URL, TITLE)] * len(wanted)
        assert streamed or text[: cited[0][1]].strip() == CITED + " 🌦" * (vendor == "never")
    else:
        assert cited == wanted


@both_ways
@every_vendor
def test_the_same_format_passes_byte_for_byte(front, vendors, vendor, streamed):
    whole, parts = SAYS[vendor](images=True)
    vendors[vendor].script(stream(*parts) if streamed else reply(whole))
    door = "chat" if vendor == "openai" else vendor
    answer = ask(front, door, model_of(vendor), streamed)
    if streamed:
        told = ("citation", "grounding", "annotations", "image", "inlineData")
        kept = [part for part in parts if any(word.encode() in part for word in told)]
        got = answer.data.replace(b"\r\n", b"\n")
        assert kept and all(part in got for part in kept[:-1])
    else:
        assert answer.json == whole


def test_what_the_page_says_is_kept_where_a_format_has_a_place_for_it(front, vendors):
    vendors["anthropic"].script(reply(anthropic_says(False)[0]))
    answer = ask(front, "chat", model_of("anthropic"))
    (cited,) = answer.json["choices"][0]["message"]["annotations"]
    assert cited["url_citation"]["content"] == SAID


@both_ways
@pytest.mark.parametrize("vendor", ["openai", "responses", "gemini"])
@every_door
def test_images_that_a_model_draws_arrive(front, vendors, door, vendor, streamed):
    whole, parts = SAYS[vendor](images=True)
    vendors[vendor].script(stream(*parts) if streamed else reply(whole))
    answer = ask(front, door, model_of(vendor), streamed)
    if door == vendor or (door, vendor) == ("chat", "openai"):
        return
    if door == "anthropic":  # it has no place for them, and says so
        text = read_anthropic(answer.data, streamed)[0]
        assert text.startswith(TEXT) and "image/png" in text and PICTURE not in text
    else:
        text, _, images = READ[door](answer.data, streamed)
        assert (text, images) == (TEXT, [PNG])


@every_door
def test_citations_before_their_text_and_beside_calls_are_in_place(front, vendors, door):
    """Some vendors send citations first, and a tool's call may come before the text ends."""
    head = {"id": "chatcmpl-1", "created": 1, "model": "gpt-x", "object": "chat.completion.chunk"}
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    late = {"type": "url_citation", "url_citation": places(len(FIRST), len(TEXT))}
    deltas = [
        {"annotations": [{"type": "url_citation", "url_citation": places()}]},
        {"content": FIRST},
        {"content": REST, "annotations": [late], "tool_calls": [call]},
    ]
    choices = [{"index": 0, "delta": each, "finish_reason": None} for each in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": "tool_calls"})
    parts = [event(head | {"choices": [choice]}) for choice in choices]
    vendors["openai"].script(stream(*parts, b"data: [DONE]\n\n"))
    answer = ask(front, door, model_of("openai"), True)
    if door == "chat":
        return  # the vendor's own
    if door == "anthropic":
        deltas = [each["delta"] for each in events(answer.data) if "delta" in each]
        kinds = [delta["type"] for delta in deltas if delta.get("type")]
        assert kinds == [
            *("citations_delta", "text_delta", "text_delta", "citations_delta"),
            "input_json_delta",
        ]
    elif door == "responses":
        *_, last = events(answer.data)
        text, used = last["response"]["output"]
        spans = [
            (one["start_index"], one["end_index"]) for one in text["content"][0]["annotations"]
        ]
        assert spans == [SPAN, (len(FIRST), len(TEXT))] and used["name"] == "f"
    else:
        text, cited, _ = read_gemini(answer.data, True)
        assert text == TEXT and [one[:2] for one in cited] == [SPAN, (len(FIRST), len(TEXT))]


# -- the next turn ---------------------------------------------------------------------------------


def sent(vendor):
    return vendor.seen[-1].body


@pytest.mark.parametrize("vendor", ["openai", "responses", "anthropic"])
@pytest.mark.parametrize("door", ["chat", "responses"])
def test_an_image_of_another_vendor_is_shown_by_the_user(front, vendors, door, vendor):
    vendors["gemini"].script(reply(gemini_says(images=True)[0]))
    first = ask(front, door, model_of("gemini")).json
    turns = [{"role": "user", "content": "Draw."}]
    if door == "chat":
        turns.append(first["choices"][0]["message"])
    else:
        turns += first["output"]
    turns.append({"role": "user", "content": "What is it?"})
    vendors[vendor].script(reply(SAYS[vendor](images=False)[0]))
    answer = ask(front, door, model_of(vendor), question=turns)
    assert answer.status == 200, answer.data
    body = sent(vendors[vendor])
    said = body.get("messages") or body["input"]
    roles = [turn.get("role") for turn in said]
    assert roles == ["user", "assistant", "user", "user"], said
    assert PICTURE in json.dumps(said[2]) and PICTURE not in json.dumps(said[1])
    assert "image_generation_call" not in json.dumps(said) and "images" not in said[1]


@pytest.mark.parametrize("door", ["chat", "responses"])
def test_google_gets_its_image_back(front, vendors, door):
    vendors["gemini"].script(reply(gemini_says(images=True)[0]))
    first = ask(front, door, model_of("gemini")).json
    turns = [{"role": "user", "content": "Draw."}]
    turns += [first["choices"][0]["message"]] if door == "chat" else first["output"]
    turns.append({"role": "user", "content": "Bigger."})
    vendors["gemini"].script(reply(gemini_says(images=False)[0]))
    assert ask(front, door, model_of("gemini"), question=turns).status == 200
    _, model, _ = sent(vendors["gemini"])["contents"]
    image = {"inlineData": {"mimeType": "image/png", "data": PICTURE}}
    assert model == {"role": "model", "parts": [{"text": TEXT}, image]}


@pytest.mark.parametrize("vendor", ["openai", "responses", "anthropic", "gemini"])
def test_an_image_that_the_client_did_not_keep_ends_no_conversation(front, vendors, vendor):
    vendors["gemini"].script(reply(gemini_says(images=True)[0]))
    text, image = ask(front, "responses", model_of("gemini")).json["output"]
    bare = {"type": image["type"], "id": image["id"]}  # as LangChain returns it
    turns = [text, bare, {"role": "user", "content": "b"}]
    vendors[vendor].script(reply(SAYS[vendor](images=False)[0]))
    answer = ask(front, "responses", model_of(vendor), question=turns)
    assert answer.status == 200, answer.data
    assert image["id"] not in json.dumps(sent(vendors[vendor]))
    if vendor != "responses":
        assert answer.headers["X-Infermux-Dropped"] == "input.image_generation_call"


def test_anthropic_is_not_sent_citations_that_it_never_gave(front, vendors):
    vendors["gemini"].script(reply(gemini_says(images=False)[0]))
    content = ask(front, "anthropic", model_of("gemini")).json["content"]
    own = anthropic_says(False)[0]["content"][2]
    assert content[0]["citations"] and own["citations"]
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [*content, own]},
        {"role": "user", "content": "b"},
    ]
    vendors["anthropic"].script(reply(anthropic_says(False)[0]))
    assert ask(front, "anthropic", model_of("anthropic"), question=turns).status == 200
    blocks = sent(vendors["anthropic"])["messages"][1]["content"]
    assert blocks == [*({"type": "text", "text": one["text"]} for one in content), own]


# -- hooks -----------------------------------------------------------------------------------------


@both_ways
@every_door
def test_a_hook_takes_images_and_citations_out_of_any_answer(vendors, door, streamed):
    """Also in place, and where client and vendor have the same format."""

    def bare(answer):
        answer.images.clear()
        return replace(answer, annotations=[])

    vendors["gemini"].script(
        stream(*gemini_says(True)[1]) if streamed else reply(gemini_says(1)[0])
    )
    with Front(vendors["gemini"].provider(), hooks={"after": bare}) as front:
        answer = ask(front, door, model_of("gemini"), streamed)
    assert answer.status == 200, answer.data
    text, cited, images = READ[door](answer.data, streamed)
    assert (text, cited, images) == (TEXT, [], []) and PICTURE.encode() not in answer.data


def test_a_hook_cannot_take_an_image_out_of_the_vendors_own_event(vendors):
    vendors["gemini"].script(stream(*gemini_says(images=True)[1]))
    hooks = {"chunk": lambda chunk: chunk._replace(images=())}
    with Front(vendors["gemini"].provider(), hooks=hooks) as front:
        answer = ask(front, "gemini", model_of("gemini"), True)
    assert PICTURE.encode() not in answer.data and b"error" in answer.data
