"""Measuring through a running loradock endpoint, by vLLM's OpenAI-compatible routes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import SecretStr

from loradock.registry.errors import Conflict, DigestMismatch, LoradockError, NotFound
from loradock.registry.evidence import Subject
from loradock.registry.records import Version
from loradock.registry.replica_client import ReplicaClient
from loradock.registry.secret import NO_KEY
from loradock.trainer.evaluation.heldout import Item, messages
from loradock.trainer.evaluation.scorer import Step

_TIMEOUT: Final = 600  # seconds; a busy server lets requests wait
_AT_ONCE: Final = 16

GREEDY: Final[Mapping[str, float]] = {
    "temperature": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
"""What vLLM has to be told, so that no default of its base's chooses a token; here all such defaults are left out."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Served:
    """One name that an endpoint answers to."""

    name: str
    answers_as: str
    """What an answer says that it is from: `support-bot/3`, or the base's name."""
    digest: str
    """The adapter's; empty for the base."""
    max_length: int
    """Tokens of prompt and answer together."""


class Endpoint:
    """An OpenAI-compatible endpoint of loradock's; `serve` says which of its names stand for whom.

    Answers end at the tokens of `stops`, as they do here.
    """

    def __init__(self, url: str, key: SecretStr = NO_KEY, stops: Iterable[int] = ()) -> None:
        self._stops = sorted(stops)
        self._client = ReplicaClient(url.rstrip("/").removesuffix("/v1"), key, seconds=_TIMEOUT, what="endpoint")
        self._url = self._client.url
        self._names: dict[Subject, Served] = {}

    def measures(self, subject: Subject, version: Version | None) -> Served:
        """Take a version, or the base for None, for a subject.

        Raises NotFound, with what is served, for a version that is not; DigestMismatch when other bytes bear its name.
        """
        cards = self._ask("GET", "/v1/models").get("data", [])
        wanted = None if version is None else str(version.ref)
        for card in cards:
            if (card.get("root") if card.get("parent") else None) == wanted:
                answers_as = wanted or card["id"]
                served = Served(card["id"], answers_as, card.get("digest") or "", int(card["max_model_len"]))
                break
        else:
            raise NotFound(f"{self._url} does not serve {wanted or 'a base'}", hint=f"it serves {_listed(cards)}")
        if version and served.digest != version.facts.digest:
            raise DigestMismatch(f"{version.ref} at {self._url}", expected=version.facts.digest, found=served.digest)
        self._names[subject] = served
        return served

    @property
    def max_length(self) -> int:
        """Tokens of prompt and answer together."""
        return min(served.max_length for served in self._names.values())

    def nats(self, subject: Subject, items: Sequence[Item], step: Step) -> list[float]:
        """The loss of each example, summed over the tokens of its completion, in nats, by vLLM's `prompt_logprobs`."""
        return self._each(lambda item: self._nats(subject, item), items, step)

    def answers(self, subject: Subject, items: Sequence[Item], new_tokens: int, step: Step) -> list[str]:
        """What is said to each prompt, greedily, in at most so many tokens; chats are asked as chats."""
        return self._each(lambda item: self._answer(subject, item, new_tokens), items, step)

    def _nats(self, subject: Subject, item: Item) -> float:
        ids = item.tokens.input_ids
        choice = self._generate(
            subject, "/v1/completions", {"prompt": list(ids), "max_tokens": 1, "prompt_logprobs": 0}
        )
        given = choice.get("prompt_logprobs")
        if not given or len(given) != len(ids):
            raise LoradockError(f"{self._url} gives no log-probabilities of a prompt's tokens")
        kept = zip(ids[1:], given[1:], item.tokens.completion_mask[1:], strict=True)
        return -sum(float(entry[str(token)]["logprob"]) for token, entry, counts in kept if counts)

    def _answer(self, subject: Subject, item: Item, new_tokens: int) -> str:
        room = self._names[subject].max_length - len(item.prompt)
        body = {"max_tokens": min(new_tokens, room)}
        if (turns := messages(item)) is not None:
            asked = {**body, "messages": turns, "return_token_ids": True}
            choice = self._generate(subject, "/v1/chat/completions", asked, written=item.prompt)
            return str(choice["message"]["content"] or "")
        return str(self._generate(subject, "/v1/completions", {**body, "prompt": list(item.prompt)})["text"])

    def _generate(
        self, subject: Subject, route: str, body: Mapping[str, Any], written: tuple[int, ...] = ()
    ) -> Mapping[str, Any]:
        """The one choice of an answer, which must be by the version that was asked, to a prompt written as here."""
        served = self._names[subject]
        answer = self._ask("POST", route, {"model": served.name, **GREEDY, "stop_token_ids": self._stops, **body})
        if written and tuple(answer.get("prompt_token_ids") or written) != written:
            raise LoradockError(
                f"{self._url} writes a prompt otherwise than the tokenizer and chat template of the base here",
                hint="name the directory of the base that it serves with --base DIR",
            )
        if answer.get("model") != served.answers_as:
            raise Conflict(served.name, expected=served.answers_as, found=str(answer.get("model")))
        choice: Mapping[str, Any] = answer["choices"][0]
        return choice

    def _each(self, measure: Callable[[Item], T], items: Sequence[Item], step: Step) -> list[T]:
        def told(found: Iterator[T]) -> Iterator[T]:
            for value in found:
                step(1)
                yield value

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return list(told(pool.map(measure, items)))

    def _ask(self, method: str, route: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        answer = self._client.send(method, route, body)
        found = self._client.data(answer) if answer.content else {}
        if answer.status_code != 200 or not isinstance(found, dict):
            raise LoradockError(f"{self._url}{route} answers with {answer.status_code}: {_said(found)}")
        return found


def _listed(cards: Sequence[Mapping[str, Any]]) -> str:
    shown = [f"{card['id']} ({card['root']})" if card.get("parent") else str(card["id"]) for card in cards]
    return ", ".join(shown) or "nothing"


def _said(found: Any) -> str:
    error = found.get("error", found) if isinstance(found, dict) else found
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
