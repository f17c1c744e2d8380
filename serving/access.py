"""Which routes need a key, and which an admin's.

A short list is open, a list of vLLM's routes that compute is for any key, and all the rest is for admins: what a later
vLLM adds is closed until somebody says otherwise. vLLM's own check covers four prefixes, and has one kind of key; ours
takes its place (see `take_over`).
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Final

STATUS: Final = "/loradock/status"
READY: Final = "/loradock/ready"
SIGNALS: Final = "/loradock/signals"
NUDGE: Final = "/loradock/nudge"
RESPONSES: Final = "/v1/responses"

READING: Final = ("GET", "HEAD")
"""What changes and computes nothing."""
LOOKING: Final = (*READING, "OPTIONS")
"""What needs what reading needs: a mounted application does not tell them apart."""
_OPEN: Final = frozenset(
    {"/health", "/ping", "/load", "/version", READY}
    | {"/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/favicon.ico"}
)
_KEYED: Final = frozenset(
    {f"/v1/chat/completions{way}" for way in ("", "/batch", "/render", "/derender")}
    | {f"/v1/completions{way}" for way in ("", "/render", "/derender")}
    | {f"/v1/messages{way}" for way in ("", "/count_tokens", "/render")}
    | {RESPONSES, "/v1/responses/render", "/v1/systemone", "/inference/v1/generate", "/generative_scoring"}
    | {"/cohere/v2/chat", "/cohere/v2/chat/render", "/invocations", "/ping", "/tokenize", "/detokenize"}
    | {"/v1/embeddings", "/v2/embed", "/pooling", "/classify", "/score", "/v1/score"}
    | {"/rerank", "/v1/rerank", "/v2/rerank", "/v1/audio/transcriptions", "/v1/audio/translations", "/v1/realtime"}
    | {"/v1/models", "/tokenizer_info", "/is_scaling_elastic_ep", STATUS}
)
_RESPONSE: Final = re.compile(r"/v1/responses/([^/]+)(?:/cancel)?")
_MODEL: Final = re.compile(r"/v1/models/[^/]+(/[^/]+)?")
_MESSAGES: Final = "/v1/messages"


class Need(Enum):
    """What a route asks for."""

    NOTHING = auto()
    KEY = auto()
    ADMIN = auto()


def need(method: str, path: str, *, open_metrics: bool) -> Need:
    """What a request has to show; `method` is empty for a WebSocket.

    What a browser asks before its request does not come here: vLLM's CORS middleware, which is outside of the guard,
    answers it.
    """
    if path == NUDGE:  # it is signed, and looked at by its route
        return Need.NOTHING
    if method in LOOKING:
        if path in _OPEN or path.startswith("/static/") or (path == "/metrics" and open_metrics):
            return Need.NOTHING
        if path == "/metrics":
            return Need.KEY
    if path in _KEYED or stored_response(path) or (method in LOOKING and _MODEL.fullmatch(path)):
        return Need.KEY
    return Need.ADMIN


def stored_response(path: str) -> str:
    """The id of the response that a route reads or cancels; empty for any other route."""
    found = _RESPONSE.fullmatch(path)
    return found[1] if found and path not in _KEYED else ""


def is_anthropics(path: str) -> bool:
    """Whether a route is of Anthropic's API, which has a header for keys and a shape of errors of its own."""
    return path == _MESSAGES or path.startswith(f"{_MESSAGES}/")


def vllms_keys(api_key: Sequence[str] | None, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The API keys that vLLM was given, by its own rule: `--api-key` before `VLLM_API_KEY`."""
    return tuple(key for key in (api_key or [environ.get("VLLM_API_KEY", "")]) if key)


def take_over(args: Namespace, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The API keys that vLLM was given, with its check off.

    Left on, it would refuse every key but these, in another shape than OpenAI's.
    """
    found = vllms_keys(args.api_key, environ)
    args.api_key = [""]  # vLLM adds no check for empty keys, and does not look at the variable then
    return found
