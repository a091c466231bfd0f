"""Tests of strict JSON: what is refused and why, and what is kept unchanged."""

from __future__ import annotations

import contextlib
import json
import math
import random
import time
import tracemalloc
from typing import Any

import pytest

from infermux.protocol import strict_json

from ..bench import agents

READERS = [strict_json.loads, strict_json.document]

REFUSED = [
    (b"", "empty"),
    (b" \n\t\r ", "empty"),
    (b"hello", "not JSON"),
    (b"{", "not JSON"),
    (b'{"a"', "not JSON"),
    (b'{"a":', "not JSON"),
    (b'{"a":1', "not JSON"),
    (b'{"a":1,', "not JSON"),
    (b'{"a":1,}', "not JSON"),
    (b"{,}", "not JSON"),
    (b'{"a" 1}', "not JSON"),
    (b'{"a":1 "b":2}', "not JSON"),
    (b'{"a":1}}', "not JSON"),
    (b'{"a":1} {"b":2}', "not JSON"),
    (b"{'a':1}", "not JSON"),
    (b"{a:1}", "not JSON"),
    (b'{1:"a"}', "not JSON"),
    (b'{"a":01}', "not JSON"),
    (b'{"a":+1}', "not JSON"),
    (b'{"a":.5}', "not JSON"),
    (b'{"a":0x10}', "not JSON"),
    (b'{"a":"\x01"}', "not JSON"),
    (b'{"a":"line\nbreak"}', "not JSON"),
    (b'{"a":"\\x41"}', "not JSON"),
    (b'{"a":"\\u12"}', "not JSON"),
    (b'{"a":"open', "not JSON"),
    (b'{"a":tru}', "not JSON"),
    (b'\x0b{"a":1}', "not JSON"),
    (b'{"a":1}\x00', "not JSON"),
    (b'{"a":\xc2\xa01}', "not JSON"),
    (b'{"a":"\xff"}', "not UTF-8"),
    (b'{"a":"\xed\xa0\x80"}', "not UTF-8"),
    ('{"a":1}'.encode("utf-16"), "not UTF-8"),
    (b'{"a":NaN}', "NaN"),
    (b'{"a":[Infinity]}', "Infinity"),
    (b'{"a":{"b":-Infinity}}', "-Infinity"),
    (b'{"a":1e999}', "too large"),
    (b'{"a":-1e999}', "too large"),
    (b'{"a":' + b"9" * 5000 + b"}", "too large"),
    (b'{"a":-' + b"9" * 5000 + b"}", "too large"),
    (b'{"a":1,"a":1}', "duplicate key 'a'"),
    (b'{"a":1,"\\u0061":2}', "duplicate key 'a'"),
    (b'{"x":{"b":1,"b":2}}', "duplicate key 'b'"),
    (b'{"x":[{"b":1,"c":0,"b":2}]}', "duplicate key 'b'"),
    (b'{"a":"\\ud800"}', "surrogate"),
    (b'{"a":"\\uDC00x"}', "surrogate"),
    (b'{"a":"\\ud800\\ud800"}', "surrogate"),
    (b'{"\\udfff":1}', "surrogate"),
    (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
    (b'{"a":' + b"[" * 100_000, "deep"),
    (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "deep"),
    (b'{"a":' + b"[" * 500 + b"]" * 500 + b"}", "deep"),
    (b'{"a":' + b'[{"b":' * 150 + b"1" + b"}]" * 150 + b"}", "deep"),
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(("data", "reason"), REFUSED, ids=lambda value: repr(value[:24]))
def test_what_a_wire_must_not_carry_is_refused_with_a_reason(
    read: Any, data: bytes, reason: str
) -> None:
    with pytest.raises(ValueError) as caught:
        read(data)
    assert reason in str(caught.value)
    assert not isinstance(caught.value, UnicodeError | json.JSONDecodeError)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("data", [b"[1]", b'"a"', b"1", b"null", b"true"])
def test_a_document_is_an_object(data: bytes) -> None:
    assert strict_json.loads(data) == json.loads(data)
    with pytest.raises(ValueError, match="must be a JSON object"):
        strict_json.document(data)


def test_a_reason_names_what_was_read() -> None:
    for read in READERS:
        with pytest.raises(ValueError, match="message is empty"):
            read(b"", what="message")


@pytest.mark.parametrize("read", [strict_json.loads, lambda data: strict_json.document(data).value])
@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b" { } ",
        b'\xef\xbb\xbf{"a":1}',
        b'{"a":"\\ud83d\\ude00 \\uD83D\\uDE00"}',
        b'{"a":"\\\\ud800"}',
        b'{"a":-0.0,"b":1e308,"c":1E-400}',
        b'{"a":{"x":1},"b":{"x":1}}',
        b'{"":""}',
        '{"ключ":"значение\u2028"}'.encode(),
        b'{"a":"' + b"[" * 1000 + b'\\"{{{"}',
        b'{"a":[' + b"[]," * 1000 + b"[]]}",
        b'{"a":' + b"[" * (strict_json.MAX_DEPTH - 1) + b"]" * (strict_json.MAX_DEPTH - 1) + b"}",
        b'{"a":' + b"9" * 100 + b"}",
    ],
    ids=lambda data: repr(data[:24]),
)
def test_what_is_json_is_read_as_json_reads_it(read: Any, data: bytes) -> None:
    assert read(data) == json.loads(data)


def test_the_limit_of_depth_is_exact() -> None:
    levels = strict_json.MAX_DEPTH - 1  # inside the object
    strict_json.document(b'{"a":' + b"[" * levels + b"]" * levels + b"}")
    with pytest.raises(ValueError, match="deep"):
        strict_json.document(b'{"a":' + b"[" * (levels + 1) + b"]" * (levels + 1) + b"}")


@pytest.mark.parametrize("filling", ["x", "\\\\", "\\u00e9", "é"])
def test_the_check_of_depth_costs_no_multiple_of_the_body(filling: str) -> None:
    """Enough brackets beside one long string: the string is walked over, not remembered letter by
    letter.
    """
    data = (
        '{"a":"' + filling * (1_000_000 // len(filling)) + '","b":[' + ",".join(["[]"] * 300) + "]}"
    ).encode()
    tracemalloc.start()
    try:
        strict_json.document(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 12 * len(data)


def random_json(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(7 if depth < 4 else 5)
    if kind == 5:
        return [random_json(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        return {
            f"k{number}{rng.choice(TEXTS)}": random_json(rng, depth + 1)
            for number in range(rng.randrange(4))
        }
    return [
        None,
        True,
        rng.randrange(-(10**20), 10**20),
        rng.uniform(-1e9, 1e9),
        rng.choice(TEXTS),
    ][kind]


TEXTS = ["", "a", '"', "\\", "}", "[{", "é", "日本", "😀", "\u2028", "\n", "\x7f", ",:", " "]


def layout(value: Any, rng: random.Random) -> str:
    """Return the object as text with white space wherever JSON allows it."""

    def space() -> str:
        return "".join(rng.choices(" \t\r\n", k=rng.randrange(3)))

    members = [
        f"{space()}{json.dumps(key, ensure_ascii=rng.random() < 0.5)}{space()}:{space()}\0{space()}"
        for key in value
    ]
    texts = [
        json.dumps(item, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, 2]))
        for item in value.values()
    ]
    filled = [member.replace("\0", text) for member, text in zip(members, texts, strict=True)]
    return space() + "{" + (",".join(filled) or space()) + "}" + space()


@pytest.mark.parametrize("seed", range(60))
def test_a_member_is_replaced_without_a_change_to_the_rest(seed: int) -> None:
    rng = random.Random(seed)
    value = {
        "model": "old",
        **{f"m{number}": random_json(rng) for number in range(rng.randrange(5))},
    }
    text = layout(value, rng)
    document = strict_json.document(text.encode())
    assert document.value == value
    assert document.text == text
    assert {key: json.loads(document.raw(key)) for key in value} == value
    changed = document.replaced({"model": 'n"é', "added": [1], "more": None})
    assert strict_json.loads(changed) == value | {"model": 'n"é', "added": [1], "more": None}
    assert all(document.raw(key) in changed.decode() for key in value if key != "model")
    assert document.replaced({}).decode() == text


@pytest.mark.parametrize(
    ("text", "new", "expected"),
    [
        ('{"a": 1, "b":2 }', {"a": 5}, '{"a": 5, "b":2 }'),
        ('{"a": 1, "b":2 }\n', {"c": "x"}, '{"a": 1, "b":2,"c":"x"}'),
        ("{ }", {"c": 0}, '{"c":0}'),
        ('{"a":1.50,"b":1e3}', {"b": True}, '{"a":1.50,"b":true}'),
    ],
)
def test_a_replacement_reads_as_written(text: str, new: dict[str, Any], expected: str) -> None:
    assert strict_json.document(text).replaced(new) == expected.encode()


def test_raw_is_the_text_as_it_stands_without_the_space_around_it() -> None:
    document = strict_json.document(b'{"payload" :  { "a" : 1.0 ,\n"b":"\\u00e9" }  ,"x":1}')
    assert document.raw("payload") == '{ "a" : 1.0 ,\n"b":"\\u00e9" }'


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"a": [float("-inf")]}])
def test_what_json_cannot_say_is_not_written(value: Any) -> None:
    for write in (strict_json.dumps, strict_json.encode):
        with pytest.raises(ValueError):
            write(value)


def test_json_is_written_compact_and_readable() -> None:
    assert strict_json.encode({"b": [1, None], "a": "é<&>"}) == '{"b":[1,null],"a":"é<&>"}'.encode()
    assert strict_json.dumps({"b": 1}) == '{"b":1}'


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_value_with_long_strings_is_written_as_any_other(seed: int, escaped: bool) -> None:
    rng = random.Random(seed)
    letters = ["\\", '"', "\n", "\t", "/", "\\n", "word ", '\\"'] + ["\x01", "\r", "é", "😀"] * (
        seed % 2
    )
    texts = ["".join(rng.choices(letters, k=strict_json.LONG + step)) for step in range(-9, 9, 3)]
    value = {"a": [texts[0], {"b": texts[1], "c": [texts[2], 1, None]}], texts[3]: texts[4:]}
    written = strict_json.encode_long(value, escaped=escaped)
    assert json.loads(written) == value
    assert escaped or written == strict_json.encode(value)


def test_half_a_pair_from_a_vendor_does_not_stop_an_answer() -> None:
    assert strict_json.encode({"a": "x\ud83d"}) == b'{"a":"x?"}'


def test_a_vendor_may_repeat_a_key() -> None:
    assert strict_json.lenient(b'\xef\xbb\xbf{"a":1,"a":2}') == {"a": 2}


@pytest.mark.parametrize(
    "data",
    [b"", b"<html>", b"NaN", b'{"a":1e999}', b"\xff", b"[" * 100_000, b"9" * 5000, b'{"a":1} x'],
)
def test_a_vendors_nonsense_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        strict_json.lenient(data)


def test_nesting_is_refused_before_python_is_at_the_end_of_its_stack() -> None:
    """There a collection of garbage would run finalizers that fail too: here Python itself would
    read all of it.
    """
    for text in (b"[" * 300 + b"]" * 300, b'{"a":' * 300 + b"1" + b"}" * 300):
        with pytest.raises(ValueError, match="deep"):
            strict_json.lenient(text)
    assert strict_json.lenient(b'["' + b"[{" * 300 + b'"]') == ["[{" * 300]


@pytest.mark.parametrize("inner", ["[]", "{}", "[0]", '{"a":"b"}'])
@pytest.mark.parametrize("begin", ["", '{"x":[],"y":"é"},' * 2000, '"' + "x" * 100_000 + '",'])
def test_an_empty_list_counts_as_a_level_like_a_full_one(begin: str, inner: str) -> None:
    outer = strict_json.MAX_DEPTH - 2  # around what is innermost, with the object and its list
    for levels, is_read in ((outer, True), (outer + 1, False)):
        text = '{"a":[' + begin + "[" * (levels - 1) + inner + "]" * (levels - 1) + "]}"
        with contextlib.nullcontext() if is_read else pytest.raises(ValueError, match="deep"):
            assert strict_json.document(text).value == json.loads(text)


def test_a_string_that_does_not_end_is_looked_at_once() -> None:
    """From each of its quotes it would take hours."""
    with pytest.raises(ValueError, match="not JSON"):
        strict_json.loads("[" + "[]," * 300 + '"' + '\\"' * 500_000)


# -- large texts: each of the ways to read one refuses and keeps the same ---------------------------


def prose(rng: random.Random, size: int) -> str:
    return "".join(rng.choices([*TEXTS, 'say "x": {[\\', "}],", "\\\\", ":", "word "], k=size // 4))


def large(rng: random.Random, kind: str) -> dict[str, Any]:
    """Return a request of 20 to 60 KB: few long texts, many small objects, or lists of numbers."""
    if kind == "prose":
        return {"model": "m", "messages": [{"role": "user", "content": prose(rng, 30_000)}]}
    if kind == "objects":
        return {
            "model": "m",
            "messages": [{"role": "user", "content": prose(rng, 40)} for _ in range(400)],
            "tools": [random_json(rng) for _ in range(50)],
        }
    return {"model": "m", "input": [[rng.randrange(10**6)] * 40 for _ in range(200)]}


KINDS = ["prose", "objects", "numbers"]


def written(value: Any, rng: random.Random) -> str:
    return json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice([None, None, 1]))


@pytest.mark.parametrize("read", [strict_json.loads, lambda data: strict_json.document(data).value])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_a_large_text_is_read_as_json_reads_it(read: Any, kind: str, seed: int) -> None:
    rng = random.Random(seed)
    value = large(rng, kind)
    text = written(value, rng)
    assert read(text.encode()) == read(text) == value


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("member", "reason"),
    [
        ('{"b":1,"b":1}', "duplicate key 'b'"),
        ('[0,{"x":{"role":"a","c":":","r\\u006fle":"b"}}]', "duplicate key 'role'"),
        ('{"\\\\":0,"c\\":":1,"\\\\":2}', r"duplicate key '\\'"),
        ("[" * 205 + "]" * 205, "deep"),
        ("[" * 2000 + "]" * 2000, "deep"),
        ("[" * 100_000, "deep"),
        ('{"a":[0,' * 120 + "1" + "]}" * 120, "deep"),
        ("1" * 401, "too large"),
        ("-" + "1" * 5000, "too large"),
        ("1e999", "too large"),
        ("NaN", "NaN"),
        ('"\\ud83d\\\\udc00"', "surrogate"),
        ('"\\\\ud83d\\udc00"', "surrogate"),
        ('"\\ud83d\\ude00\\ude00"', "surrogate"),
        ('"\\', "not JSON"),
        ('"x\n"', "not JSON"),
        ("]", "not JSON"),
    ],
    ids=lambda value: repr(value[:24]),
)
@pytest.mark.parametrize("read", READERS)
def test_what_is_refused_is_refused_anywhere_in_a_large_text(
    read: Any, kind: str, member: str, reason: str
) -> None:
    rng = random.Random(kind)
    members = [f"{json.dumps(key)}:{written(item, rng)}" for key, item in large(rng, kind).items()]
    for place in range(len(members) + 1):
        text = "{" + ",".join([*members[:place], f'"x":{member}', *members[place:]]) + "}"
        with pytest.raises(ValueError) as caught:
            read(text.encode())
        assert reason in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_what_only_looks_wrong_is_read(kind: str) -> None:
    rng = random.Random(kind)
    value = large(rng, kind) | {
        "x": ["[{" * 5000, '"a":1,"a":2', "\\ud83d", "\\\U0001f600", "1" * 4000, 10**399, "\\"],
        "y": [[[]] * 300, {}],
    }
    text = written(value, rng)
    assert strict_json.document(text.encode()).value == strict_json.loads(text) == value


def test_a_document_has_no_more_members_than_can_be_recorded() -> None:
    most = strict_json.MAX_MEMBERS
    text = json.dumps({f"m{number}": 0 for number in range(most)})
    assert len(strict_json.document(text).spans) == most
    with pytest.raises(ValueError, match=f"body has more than {most} members"):
        strict_json.document(text[:-1] + ',"one":1}')


def cpu(call: Any, *given: Any, times: int = 1) -> float:
    """Return the CPU seconds of the fastest of so many calls."""
    best = math.inf
    for _ in range(times):
        start = time.thread_time()
        call(*given)
        best = min(best, time.thread_time() - start)
    return best


WORDS = ["it", "is", "said", "of", "a", "word", "that", "all", "are", "alike", "until", "none is,"]


def chat(size: int, letters: int) -> bytes:
    """Return a request of *size* bytes whose messages have so many letters each."""
    rng = random.Random(letters)
    body = " ".join(rng.choices(WORDS, k=letters // 4))
    one = {"role": "user", "content": body}
    return json.dumps({"model": "m", "messages": [one] * (size // (len(body) + 35))}).encode()


def escaped(content: str, times: int) -> bytes:
    """Return a request whose messages all have this content, as ASCII."""
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": content}] * times}
    ).encode()


CODE = 'def f(x):\n\tprint("C:\\\\x", x[0], {"a": 1})\n'
TEXTS_OF_450_KB = {
    **{
        f"prose {letters}": chat(450_000, letters) for letters in (100, 200, 400, 900, 4000, 60_000)
    },
    "code": escaped(CODE * 7000, 1),
    "messages of code": escaped(CODE * 16, 400),
    "lines": escaped("a line of text\n" * 28_000, 1),
    "backslashes": escaped("\\" * 220_000, 1),
    "quotes": escaped('"' * 220_000, 1),
    "Japanese, escaped": escaped("日本語のテキスト" * 9000, 1),
    "emoji, escaped": escaped("😀é" * 25_000, 1),
    "Japanese": json.dumps(["日本語のテキスト" * 18_000], ensure_ascii=False).encode(),
    "umlauts": json.dumps(["plain text " * 20 + "é"] * 2000, ensure_ascii=False).encode(),
    "tool turns": json.dumps(agents.SHAPES["turns"]).encode(),
    "keys": json.dumps({"metadata": {f"k{number}": number for number in range(30_000)}}).encode(),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS_OF_450_KB)
def test_a_text_is_read_at_the_speed_of_the_parser(name: str) -> None:
    """Measured 1.1 to 1.7 times as long as `json.loads`; a hook for each pair takes twice, a look
    at each bracket eight times as long.
    """
    data = TEXTS_OF_450_KB[name]
    plain, strict = math.inf, math.inf
    for _ in range(40):  # in turn: other work on the machine slows both
        plain = min(plain, cpu(json.loads, data))
        strict = min(strict, cpu(strict_json.loads, data))
    assert strict < 2.2 * plain


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begin", "part", "end"),
    [
        ('{"a":"', 'x\\n\\"[{', '"}'),
        ('{"a":[', "[],", "0]}"),
        ('{"a":[', "[" * 150 + "]" * 150 + ",", "0]}"),
        ('{"a":[', '{"b":"\\\\\\""},', "0]}"),
        ('{"a":[', "12345,", "0]}"),
        ('{"a":"', "\\u00e9", '"}'),
        ('{"a":"', "\\ud83d\\ude00", '"}'),
        ('{"a":"', "7", '"}'),
        ("", "[", ""),
        ('{"a":"', '\\"', ""),
        ("", '{"a":1,', ""),
        ("", '["', ""),
        ("", '["",', ""),
        ("", '{"a":' * 90 + '"\\n"' + "}" * 90, ""),
        ('{"a":[', '{"a":"\\"",' + '"b":"' + "x" * 400 + '"},', "0]}"),
        ('{"a":"', "\\u00e9" + "x" * 400, "\\"),
    ],
)
def test_the_time_is_linear_in_the_size_of_the_text(begin: str, part: str, end: str) -> None:
    def read(size: int) -> None:
        with contextlib.suppress(ValueError):
            strict_json.document(f"{begin}{part * (size // len(part))}{end}".encode())

    assert cpu(read, 4_000_000, times=3) < 12 * max(0.02, cpu(read, 1_000_000, times=3))
