"""The rows of an input file, ours or those of OpenAI's batch format; every fault with its line."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from loradock.registry.errors import BadInput, faults_of
from loradock.registry.outside import printable

_MOST_FAULTS: Final = 20
_CHAT, _COMPLETION = "/v1/chat/completions", "/v1/completions"

_Stop = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Sampling(_Strict):
    """How tokens are chosen, in OpenAI's names; None is left to the base's generation_config.json, then to vLLM."""

    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        default=None, validation_alias=AliasChoices("max_tokens", "max_completion_tokens")
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    stop: _Stop | list[_Stop] | None = None

    def given(self) -> dict[str, Any]:
        """The values that are set."""
        return {name: value for name in Sampling.model_fields if (value := getattr(self, name)) is not None}


def _is_text(content: Any) -> Any:
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    if all(part == {"type": "text", "text": part.get("text")} and isinstance(part["text"], str) for part in parts):
        return content
    raise ValueError("give text, or a list of parts of type text")


class _Message(_Strict):
    role: Annotated[str, Field(min_length=1)]
    content: Annotated[str | list[dict[str, Any]], AfterValidator(_is_text)]
    name: str | None = None


class _Request(Sampling):
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[_Message], Field(min_length=1)] | None = None
    n: Literal[1] | None = None
    stream: Literal[False] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_question(self) -> _Request:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either prompt or messages")
        return self


class _Ours(_Request):
    id: str | int | None = None


class _OpenAI(_Strict):
    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/chat/completions", "/v1/completions"]
    body: _Request

    @model_validator(mode="after")
    def _fits_its_route(self) -> _OpenAI:
        if (self.url == _CHAT) != (self.body.messages is not None):
            raise ValueError(f"{_CHAT} takes messages, {_COMPLETION} a prompt")
        return self


@dataclass(frozen=True, slots=True)
class Row:
    """One question."""

    index: int
    """Its place among the rows, from 0."""
    line: int
    """Its line in the file, from 1."""
    id: str | int | None
    model: str
    """Who is asked, as it is written; empty for the base."""
    prompt: str | None
    messages: tuple[Mapping[str, Any], ...] | None
    """A conversation, where there is no prompt."""
    sampling: Mapping[str, Any]
    """What the row itself sets of `Sampling`."""


@dataclass(frozen=True, slots=True)
class Rows:
    """An input file, read whole."""

    rows: tuple[Row, ...]
    sha256: str
    """Of the file's bytes."""


def read(path: Path) -> Rows:
    """The rows of a JSONL file; empty lines are none. Raises BadInput with every line that is not understood."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    rows: list[Row] = []
    faults: list[str] = []
    lines_of: dict[str | int, int] = {}
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _parse(line, len(rows), number)
        except ValueError as error:
            told = faults_of(error) if isinstance(error, ValidationError) else [str(error)]
            faults += (f"line {number}: {fault}" for fault in told)
            continue
        rows.append(row)
        if row.id is not None and (first := lines_of.setdefault(row.id, number)) != number:
            faults.append(f"line {number}: its id {row.id!r} is that of line {first}")
    refuse(path, faults)
    if not rows:
        raise BadInput(f"{path} holds no rows", hint='write one a line: {"model": "support-bot", "prompt": "Hello"}')
    return Rows(tuple(rows), hashlib.sha256(data).hexdigest())


def refuse(path: Path, faults: Sequence[str]) -> None:
    """Raise BadInput with the first faults of an input file, and the number of the others; return if there are none."""
    if faults:
        more = [f"and {len(faults) - _MOST_FAULTS} more"] if len(faults) > _MOST_FAULTS else []
        problems = [printable(fault, 300) for fault in faults[:_MOST_FAULTS]]
        raise BadInput(f"{path} cannot be answered as it is", problems=[*problems, *more])


def _parse(line: bytes, index: int, number: int) -> Row:
    try:
        found = from_json(line)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {str(error).replace(' at line 1', ' at')}") from error
    if not isinstance(found, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - the file's fault, as the other ones
    row_id: str | int | None
    request: _Request
    if "body" in found or "custom_id" in found:
        wrapped = _OpenAI.model_validate(found)
        row_id, request = wrapped.custom_id, wrapped.body
    else:
        request = ours = _Ours.model_validate(found)
        row_id = ours.id
    messages = None
    if request.messages is not None:
        messages = tuple(message.model_dump(exclude_none=True) for message in request.messages)
    return Row(index, number, row_id, request.model or "", request.prompt, messages, request.given())
