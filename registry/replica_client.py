"""The one client of serving replicas: key, time-outs, and what goes wrong over HTTP as errors of loradock."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from pydantic import SecretStr

from loradock.registry.errors import BadInput, NotFound, Unreachable
from loradock.registry.replica_status import ReplicaStatus, read
from loradock.registry.secret import NO_KEY, bearer

if TYPE_CHECKING:
    import ssl

    import httpx

SECONDS: Final = 10.0
_CONNECT_SECONDS: Final = 10.0


class NoAnswer(Unreachable):
    """A replica did not answer, or not this time: `reason` is why, without its address."""

    def __init__(self, message: str, *, reason: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.reason = reason


class NoJson(NotFound):
    """What answers sends no JSON; behind a proxy, that may be a replica later."""

    reason = "it answers with no JSON"


class ReplicaClient:
    """A replica at a URL, asked with a key; errors call it `what`, and the key that it asks for `needs`.

    It may be used by several threads. No connection outlives its request, so none has to be closed.
    """

    def __init__(
        self,
        url: str,
        key: SecretStr = NO_KEY,
        *,
        seconds: float = SECONDS,
        what: str = "replica",
        needs: str = "a key",
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise BadInput(f"{url!r} is not a URL", hint="write it as http://HOST:PORT")
        import httpx

        self.url, self._what, self._needs = url.rstrip("/"), what, needs
        self._http = httpx.Client(
            headers=bearer(key),
            timeout=httpx.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS)),
            limits=httpx.Limits(max_keepalive_connections=0),
            follow_redirects=True,
            verify=_certificates(),
        )

    def status(self) -> ReplicaStatus:
        """What it reports of itself; raises NotFound for another server, or another version of loradock."""
        return read(self.ask("GET", "/loradock/status"), self.url)

    def nudge(self) -> None:
        """Have it read the registry now."""
        self._checked(self.send("POST", "/loradock/nudge"))

    def waiting(self) -> list[str]:
        """The public names whose promoted version does not answer them yet; this needs no key."""
        return list(self.data(self.send("GET", "/loradock/ready"))["waiting"])

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON of an answer that is none of an error; raises what `send` and `answered` do."""
        return self.answered(self.send(method, path, body))

    def send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """An answer, whatever its code but 401.

        Raises Unreachable where none came, and BadInput for a key that it does not know, or a wrong URL.
        """
        import httpx

        try:
            answer = self._http.request(method, self.url + path, json=body)
        except httpx.InvalidURL as error:
            raise BadInput(f"{self.url!r} is not a URL: {error}", hint="write it as http://HOST:PORT") from error
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            hint = "start one with `loradock serve`, or give the URL of one that runs"
            raise NoAnswer(f"no {self._what} answers at {self.url}: {reason}", reason=reason, hint=hint) from error
        if answer.status_code == 401:
            raise self._locked()
        return answer

    def answered(self, answer: httpx.Response) -> Any:
        """Its JSON; raises Unreachable where it is an error, BadInput for a 403, and NotFound for a 404 or no JSON."""
        return self.data(self._checked(answer))

    def data(self, answer: httpx.Response) -> Any:
        """The JSON of an answer; raises NotFound where there is none."""
        try:
            return answer.json()
        except ValueError as error:
            raise NoJson(f"{self.url} answers, but not as a loradock {self._what}") from error

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.status_code == 403:
            raise self._locked()
        if answer.status_code == 404:
            raise NotFound(f"{self.url} answers, but is no loradock {self._what}", hint="start one: loradock serve")
        if answer.is_error:
            raise self.failed(answer)
        return answer

    def failed(self, answer: httpx.Response) -> NoAnswer:
        """What an answer with the code of an error is: another one may be none."""
        said = f"{answer.status_code} {answer.reason_phrase}"
        return NoAnswer(f"{self.url} answers with {said}", reason=f"it answers with {said}")

    def _locked(self) -> BadInput:
        return BadInput(f"{self.url} asks for {self._needs}", hint="give --api-key, or set VLLM_API_KEY")


@functools.cache
def _certificates() -> ssl.SSLContext:
    """Whom to trust; reading it takes as long as a hundred requests, so it is read once."""
    import httpx

    return httpx.create_ssl_context()
