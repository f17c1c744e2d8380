"""A request's JSON, of which a few members are read and replaced, and all other bytes stay as the client sent them.

A short body is parsed at once. A long one, and one that holds what JSON does not have, is looked through in slices,
between which the event loop does other work: only where strings, brackets and the object's own members begin and end,
which is exact for whatever `json.loads` reads, and leaves it to vLLM to refuse the rest.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from json.decoder import JSONDecoder
from typing import Any, Final

DEEPEST: Final = 200
"""Levels of nesting that are read; vLLM, deeper in its calls, reads not many more."""
READ: Final = ("model", "user", "safety_identifier", "previous_response_id", "request_id")
"""The members that can be asked for."""

_SHORT: Final = 64 * 1024
_SLICE: Final = 64 * 1024
_MARKS: Final = (rb"\ud", rb"\uD", b"NaN", b"Infinity")
"""Without these there is neither half of a surrogate pair nor a constant that JSON does not have."""
_SPACE: Final = b" \t\n\r"
_SPACES: Final = re.compile(r"[ \t\n\r]*")
_NUMBER: Final = frozenset(b"0123456789+-.eE")
_DIGITS: Final = 200
"""A number that is not finite has more digits in a row than these, or an exponent of three."""
_MEMBERS: Final = 16_384
"""Members that an object has at most: more than fit into a short body."""
_SUSPECTS: Final = 1000
"""Numbers of a body that are looked at one by one, and no further than `_FAR` bytes."""
_FAR: Final = 5000
_NOT_JSON: Final = "The JSON holds a number that is not finite, or half of a surrogate pair."


class NotRead(ValueError):
    """JSON that vLLM shall not see, and why."""


@dataclass(frozen=True, slots=True)
class Body:
    """A JSON object."""

    raw: bytes
    spans: tuple[tuple[str, int, int], ...]
    """Where the values of the members in READ are; a name that comes twice is there twice, and the last one counts."""

    def get(self, name: str) -> Any:
        """What a member says; None where it is not there."""
        found = [(start, end) for each, start, end in self.spans if each == name]
        if not found:
            return None
        start, end = found[-1]
        if end - start > _SHORT:
            raise NotRead(f"`{name}` is longer than {_SHORT} bytes.")
        try:
            return json.loads(self.raw[start:end])
        except ValueError:
            return None  # no JSON, which vLLM refuses

    def written(self, changes: Mapping[str, str]) -> bytes:
        """Its bytes, in which members say these texts, wherever they stand, or first where they did not stand."""
        values = {name: json.dumps(text).encode() for name, text in changes.items()}
        pieces, done = list[bytes](), 0
        if new := values.keys() - {name for name, _, _ in self.spans}:
            done = self.raw.index(b"{") + 1
            added = b", ".join(b'"%s": %s' % (name.encode(), values[name]) for name in sorted(new))
            comma = b"" if self.raw[done:].lstrip(_SPACE).startswith(b"}") else b", "
            pieces = [self.raw[:done], added, comma]
        for name, start, end in self.spans:
            if name in values:
                pieces += [self.raw[done:start], values[name]]
                done = end
        return b"".join([*pieces, self.raw[done:]])


async def read(raw: bytes) -> Body | None:
    """A JSON object; None for what is none, or no JSON. Raises NotRead."""
    if json.detect_encoding(raw) not in ("utf-8", "utf-8-sig"):
        raise NotRead("The JSON is not in UTF-8.")
    begin = len(raw) - len(raw.removeprefix(b"\xef\xbb\xbf").lstrip(_SPACE))
    if raw[begin : begin + 1] not in (b"{", b"["):
        return None
    is_plain = len(raw) <= _SHORT and raw.count(b"[") + raw.count(b"{") <= DEEPEST
    spans = _parsed(raw, begin) if is_plain and not any(mark in raw for mark in _MARKS) else await _sliced(raw)
    return None if spans is None or raw[begin : begin + 1] != b"{" else Body(raw, spans)


def _float(text: str) -> float:
    if math.isinf(value := float(text)):
        raise NotRead(_NOT_JSON)
    return value


_decode: Final = JSONDecoder(parse_float=_float).raw_decode


def _parsed(raw: bytes, begin: int) -> tuple[tuple[str, int, int], ...] | None:
    """The members of what is parsed whole; None for what is no object.

    As Latin-1 every byte is a character: places are the bytes', and all that JSON is made of is ASCII.
    """
    text, found = raw.decode("latin-1"), list[tuple[str, int, int]]()

    def skip(at: int) -> int:
        match = _SPACES.match(text, at)
        return match.end() if match else at

    try:
        if text[begin] != "{":
            return None
        at, more = skip(begin + 1), text[skip(begin + 1)] != "}"
        while more:
            if text[at] != '"':
                return None
            name, at = _decode(text, at)
            if text[at := skip(at)] != ":":
                return None
            start = skip(at + 1)
            _, at = _decode(text, start)
            if name in READ:
                found.append((name, start, at))
            more = text[at := skip(at)] == ","
            at = skip(at + 1) if more else at
        return tuple(found) if text[at] == "}" and skip(at + 1) == len(text) else None
    except NotRead:
        raise
    except (ValueError, IndexError, RecursionError):
        return None


async def _sliced(raw: bytes) -> tuple[tuple[str, int, int], ...]:
    """The members of what is looked through in slices."""
    seen = _Seen(raw)
    for start in range(0, len(raw), _SLICE):
        seen.look(start, min(start + _SLICE, len(raw)))
        await asyncio.sleep(0)
    seen.end()
    return tuple(seen.found)


class _Seen:
    """What was seen of a body up to some place."""

    def __init__(self, raw: bytes) -> None:
        import numpy as np

        self._raw, self._np = raw, np
        self._bytes = np.frombuffer(raw, np.uint8)
        self._odd = 0
        """Whether an odd number of backslashes stands before that place."""
        self._inside, self._depth = False, 0
        self._quotes: Any = np.array([-2, -1])
        """The last quotes before it."""
        self._last = -1
        """The last byte before it that is of no number."""
        self._half: Any = np.array([], int)
        """The first half of a pair whose second half is not seen yet."""
        self._suspects = self._count = 0
        self.found: list[tuple[str, int, int]] = []
        self._open: tuple[str, int] | None = None
        """The member whose value has begun."""

    def look(self, start: int, end: int) -> None:
        """Look at a slice; raises NotRead."""
        if (
            self._inside
            and not self._odd
            and self._raw.find(b'"', start, end) == self._raw.find(b"\\", start, end) == -1
        ):
            self._last = end - 1
            return
        np, part = self._np, self._bytes[start:end]
        escaped = self._escaped(part)
        quote = part == ord('"')
        if escaped is not None:
            quote &= ~escaped
            self._surrogates(start + np.flatnonzero(escaped & (part == ord("u"))), end)
        inside = np.logical_xor.accumulate(quote) ^ self._inside
        outside = ~inside
        opens, closes = (part | 0x20) == ord("{"), (part | 0x20) == ord("}")  # or `[` and `]`, which lie 0x20 before
        depth = self._depth + np.cumsum((opens & outside).astype(np.int32) - (closes & outside))
        if depth.max() > DEEPEST:
            raise NotRead("The JSON is nested too deep.")
        self._numbers(start, part, outside)
        self._members(start, part, outside, depth, start + np.flatnonzero(quote))
        self._inside, self._depth = bool(inside[-1]), int(depth[-1])

    def end(self) -> None:
        """All of it was looked at; raises NotRead."""
        if len(self._half):
            raise NotRead(_NOT_JSON)

    def _escaped(self, part: Any) -> Any:
        """Which bytes an odd number of backslashes stands before; None where there are none."""
        np, slash = self._np, part == ord("\\")
        if not self._odd and not slash.any():
            return None
        places = np.arange(len(part), dtype=np.int32)
        other = np.maximum.accumulate(np.where(slash, -1 - self._odd, places))
        before = np.concatenate(([-1 - self._odd], other[:-1]))
        self._odd = int(len(part) - 1 - other[-1]) & 1
        return (places - 1 - before) & 1 == 1

    def _surrogates(self, places: Any, end: int) -> None:
        """Look whether of escapes with `u` at these places those that are halves are of pairs; raises NotRead."""
        np = self._np
        first, second = (self._bytes.take(places + ahead, mode="clip") | 0x20 for ahead in (1, 2))
        is_half = first == ord("d")
        low = places[is_half & (second >= ord("c")) & (second <= ord("f"))]
        high = places[is_half & np.isin(second, np.frombuffer(b"89ab", np.uint8))]
        high = np.concatenate((self._half, high))
        whole = len(high) - int(len(high) > 0 and high[-1] + 6 >= end)
        self._half = high[whole:]
        if not np.array_equal(high[:whole] + 6, low):
            raise NotRead(_NOT_JSON)

    def _numbers(self, start: int, part: Any, outside: Any) -> None:
        np, letter = self._np, part | 0x20
        if (outside & ((part == ord("N")) | (part == ord("I")))).any():
            raise NotRead(_NOT_JSON)
        is_digit = outside & (part >= ord("0")) & (part <= ord("9"))
        exponents = start + np.flatnonzero(outside & (letter == ord("e")))
        if len(exponents):
            digit = [self._is_digit(exponents + ahead) for ahead in (-1, 1, 2, 3, 4)]
            plus = self._bytes.take(exponents + 1, mode="clip") == ord("+")
            large = digit[0] & ((digit[1] & digit[2] & digit[3]) | (plus & digit[2] & digit[3] & digit[4]))
            self._suspect(exponents[large])
        others = start + np.flatnonzero(~is_digit)
        ends = np.concatenate(([self._last], others))
        self._suspect(ends[:-1][np.diff(ends) > _DIGITS] + 1)
        self._last = int(ends[-1])

    def _is_digit(self, places: Any) -> Any:
        found = self._bytes.take(places, mode="clip")
        return (found >= ord("0")) & (found <= ord("9"))

    def _suspect(self, places: Any) -> None:
        """Look at the numbers that are at these places; raises NotRead for one that is not finite, and for too many."""
        self._suspects += len(places)
        if self._suspects > _SUSPECTS:
            raise NotRead("The JSON holds too many numbers beyond 1e100.")
        for place in places.tolist():
            start, end = place, place
            while start > max(0, place - _FAR) and self._raw[start - 1] in _NUMBER:
                start -= 1
            while end < min(len(self._raw), place + _FAR) and self._raw[end] in _NUMBER:
                end += 1
            text = self._raw[start:end].decode()
            try:
                is_infinite = any(mark in text for mark in ".eE") and math.isinf(float(text))
            except ValueError:
                continue  # no JSON
            if is_infinite or end - place == _FAR:
                raise NotRead(_NOT_JSON)

    def _members(self, start: int, part: Any, outside: Any, depth: Any, quotes: Any) -> None:
        np = self._np
        quotes = np.concatenate((self._quotes, quotes))
        own = outside & (depth == 1)
        colons = start + np.flatnonzero(own & (part == ord(":")))
        self._count += len(colons)
        if self._count > _MEMBERS:
            raise NotRead(f"The JSON has more than {_MEMBERS} members.")
        ends = start + np.flatnonzero((own & (part == ord(","))) | (outside & (depth == 0)))
        closing = np.searchsorted(quotes, colons) - 1
        lengths = quotes[closing] - quotes[closing - 1] - 1
        may = (lengths >= min(map(len, READ))) & (lengths <= 6 * max(map(len, READ)))
        if self._open:
            self._close(ends)
        for colon, at in zip(colons[may].tolist(), closing[may].tolist(), strict=True):
            key = self._raw[int(quotes[at - 1]) : int(quotes[at]) + 1]
            if (name := _name(key)) in READ:
                self._open = (name, colon + 1)
                self._close(ends[np.searchsorted(ends, colon) :])
        self._quotes = quotes[-2:]

    def _close(self, ends: Any) -> None:
        """The value that has begun ends at the first of these places, if there is one."""
        if self._open and len(ends):
            (name, start), end = self._open, int(ends[0])
            value = self._raw[start:end]
            start += len(value) - len(value.lstrip(_SPACE))
            self.found.append((name, start, start + len(value.strip(_SPACE))))
            self._open = None


def _name(key: bytes) -> str:
    """What a member is called, as it is written."""
    if b"\\" not in key:
        return key[1:-1].decode("latin-1")
    try:
        return str(json.loads(key))
    except ValueError:
        return ""  # no JSON
