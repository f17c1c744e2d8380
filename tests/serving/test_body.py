"""What is read of a request's JSON, held against `json.loads`; and that nobody waits while it is read."""

from __future__ import annotations

import asyncio
import json
import random
import time
from typing import Any

import pytest

from loradock.serving import body
from loradock.serving.body import READ, Body, NotRead, read
from tests.support.chance import seeds

NAMES = (*READ, "prompt", "messages", "n", "Model", "mod", "über", 'a"b\\')


def member(chance: random.Random, depth: int = 0) -> str:
    kinds = ["text", "number", "word"] + (["list", "object"] if depth < 4 else [])
    match chance.choice(kinds):
        case "text":
            letters = "".join(chance.choices('ab{}[]:,"\\ \n\t\0ü€😀/user', k=chance.randrange(12)))
            return json.dumps(letters, ensure_ascii=chance.random() < 0.5)
        case "number":
            return chance.choice(["0", "-1", "1.5", "2e10", "1E-7", "1e99", "123456789" * 30, "0.1e+3"])
        case "word":
            return chance.choice(["true", "false", "null"])
        case "list":
            return f"[{','.join(member(chance, depth + 1) for _ in range(chance.randrange(4)))}]"
        case _:
            return written(chance, depth + 1)


def name(chance: random.Random) -> str:
    text = json.dumps(found := chance.choice(NAMES), ensure_ascii=chance.random() < 0.5)
    if chance.random() < 0.2 and found.isalpha():
        text = text.replace(found[0], f"\\u{ord(found[0]):04x}", 1)
    return text


def written(chance: random.Random, depth: int = 0) -> str:
    space = ["", "", " ", "\n", "\t \r\n"]
    members = [
        f"{chance.choice(space)}{name(chance)}{chance.choice(space)}:{chance.choice(space)}{member(chance, depth)}"
        for _ in range(chance.randrange(7))
    ]
    return f"{{{f'{chance.choice(space)},'.join(members)}{chance.choice(space)}}}{chance.choice(space)}"


def both(raw: bytes) -> list[Body]:
    """What is found by parsing, and by looking through it in slices."""
    parsed = body._parsed(raw, raw.index(b"{"))
    assert parsed is not None
    return [Body(raw, parsed), Body(raw, asyncio.run(body._sliced(raw)))]


@pytest.mark.chance
@pytest.mark.parametrize("seed", seeds(40))
def test_both_ways_read_what_json_says_and_replace_nothing_else(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)  # noqa: S311
    for _ in range(50):
        text = chance.choice(["", " ", "\ufeff"]) + written(chance)
        raw = text.encode()
        monkeypatch.setattr(body, "_SLICE", chance.choice([1, 2, 7, 30, 1000]))
        said = json.loads(raw)
        for found in both(raw):
            assert {each: found.get(each) for each in READ} == {each: said.get(each) for each in READ}, text
            changes = {"model": "bot/1", "request_id": "resp_1"}
            assert json.loads(found.written(changes)) == said | changes, text
            assert found.written({}) == raw
            spans = [(start, end) for each, start, end in found.spans if each == "model"]
            rest, done = list[bytes](), 0
            for start, end in spans:
                rest, done = [*rest, raw[done:start]], end
            kept = b'"bot/1"'.join([*rest, raw[done:]])
            assert not spans or found.written({"model": "bot/1"}) == kept, text


@pytest.mark.parametrize("size", [10, 100_000])
@pytest.mark.parametrize(
    ("value", "reads"),
    [
        ("1e400", False),
        ("-1e400", False),
        ("1e0000000400", False),
        ("9" * 250 + "e99", False),
        ("1" * 400 + ".0", False),
        ("1" * 400, True),
        ("1e308", True),
        ("0." + "0" * 400 + "1", True),
        ("1e-400", True),
        ("NaN", False),
        ("Infinity", False),
        ("-Infinity", False),
        ('"NaN 1e400 \\\\ud800"', True),
        ('"\\ud800"', False),
        ('"\\uD83D\\uDE00"', True),
        ('"\\\\\\ud800"', False),
        ('"\\ude00\\ud83d"', False),
        ('"\\ud83d\\ud83d\\ude00"', False),
        ('"\\ud83dx\\ude00"', False),
        ("[" * 199 + "]" * 199, True),
        ("[" * 200 + "]" * 200, False),
        ('{"a":' * 200 + "1" + "}" * 200, False),
        ("[" + ",".join(["[]"] * 500) + "]", True),
        ('"' + "[" * 500 + '"', True),
    ],
)
def test_what_json_does_not_have_is_not_read(value: str, reads: bool, size: int) -> None:
    raw = f'{{"model": "bot", "x": {value}, "y": "{"z" * size}"}}'.encode()
    if reads:
        found = asyncio.run(read(raw))
        assert found is not None
        assert found.get("model") == json.loads(raw)["model"]
    else:
        with pytest.raises(NotRead):
            asyncio.run(read(raw))


@pytest.mark.parametrize(
    "raw", [b"", b" ", b"{", b'{"a"', b'{"a":1,}', b"{]", b"[1]", b"1", b'{"a":1}x', b"--x", b"{} {}"]
)
def test_what_is_no_object_is_nobodys(raw: bytes) -> None:
    assert asyncio.run(read(raw)) is None


def test_a_model_or_a_user_of_megabytes_is_not_read() -> None:
    for each in ("model", "user"):
        found = asyncio.run(read(json.dumps({each: "x" * 2**20}).encode()))
        assert found is not None
        with pytest.raises(NotRead, match=each):
            found.get(each)


LONG = {
    "text": b'"%s"' % (b"x" * 2**25),
    "lines": b'"%s"' % (b"a line of a text\\n" * 2**20),
    "quotes": b'"%s"' % (b'\\"\\\\' * 2**22),
    "pairs": b'"%s"' % (b"\\ud83d\\ude00" * 2**21),
    "tokens": b"[%s]" % b",".join([b"12345"] * 2**22),
    "brackets": b"[%s]" % b",".join([b"[]"] * 2**22),
    "members": b'1%s, "z": 1' % (b', "abcd": 1' * 2**21),
    "numbers": b"[%s]" % b",".join([b"1e300"] * 2**22),
    "digits": b"[%s.5]" % (b"1" * 2**24),
    "space": b" " * 2**25 + b"1",
    "names": b'1%s, "z": 1' % (b', "model": "x"' * 2**21),
}


@pytest.mark.parametrize("kind", LONG)
def test_a_long_body_keeps_nobody_waiting(kind: str) -> None:
    """In seconds of this thread, since others may have the processor."""
    raw, turns = b'{"model": "bot", "x": %s}' % LONG[kind], list[float]()

    async def story() -> Any:
        reading = asyncio.ensure_future(read(raw))
        while not reading.done():
            began = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - began)
        return await asyncio.gather(reading, return_exceptions=True)

    import numpy  # noqa: F401, ICN001 - not while others wait: vLLM has imported it long before

    (found,) = asyncio.run(story())
    assert isinstance(found, NotRead) or found.get("model") == "bot"
    assert max(turns) < 0.025
