"""Requests to an MLflow server as MLflow's own client sends them: its variables, its retries, its errors' texts.

`requests`, not httpx, because MLflow sends with it: proxies, certificates, .netrc and what an error says are the same.
"""

from __future__ import annotations

import base64
import configparser
import json
import os
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import requests

_API: Final = "/api/2.0/mlflow/"
_AGAIN: Final = frozenset((408, 429, 500, 502, 503, 504))
_CODES: Final = {
    400: "BAD_REQUEST",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "ENDPOINT_NOT_FOUND",
    409: "ALREADY_EXISTS",
    429: "RESOURCE_EXHAUSTED",
    501: "NOT_IMPLEMENTED",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
"""What MLflow calls a status of HTTP that comes without a word of its own."""


class Fault(Exception):
    """An MLflow server's refusal, or no answer from it; MLflow's client raises MlflowException with the same text."""

    def __init__(self, text: str, error_code: str = "INTERNAL_ERROR") -> None:
        super().__init__(text)
        self.error_code = error_code


def is_plain(uri: str) -> bool:
    """Whether a store is a server that is asked without MLflow's plugins, for only its own client knows these."""
    if not uri.startswith(("http://", "https://")):
        return False
    if os.environ.get("MLFLOW_TRACKING_AUTH") or is_on("MLFLOW_TRACKING_AWS_SIGV4"):
        return False
    return not _has_plugins()


@cache
def _has_plugins() -> bool:
    """Whether packages are installed that add headers to MLflow's requests, or have stores of their own on servers."""
    found = entry_points()
    stores = [*found.select(group="mlflow.tracking_store"), *found.select(group="mlflow.model_registry_store")]
    headers = found.select(group="mlflow.request_header_provider")
    return bool(headers) or any(plugin.name in ("http", "https") for plugin in stores)


class Wire:
    """A connection to one server. Who asks, and in which workspace, is read from the environment at each request."""

    def __init__(self, uri: str) -> None:
        self._address = uri.rstrip("/")
        self._session: tuple[int, requests.Session] | None = None
        self._has_workspaces = False

    def call(self, method: str, path: str, /, **body: Any) -> Any:
        """What `/api/2.0/mlflow/PATH`, or a whole path, answers; a value of None is left out. Raises Fault."""
        if os.environ.get("MLFLOW_WORKSPACE") and not self._has_workspaces:
            self._see_workspaces()
        said = {key: value for key, value in body.items() if value is not None}
        endpoint = path if path.startswith("/") else f"{_API}{path}"
        answer = self.request(method, endpoint, **{"params" if method == "GET" else "json": said})
        text = answer.text
        if answer.status_code == 200 and not text.strip():
            return {}
        found = _json_object(text)
        if answer.status_code != 200:
            raise _refusal(endpoint, answer.status_code, text, found)
        if found is None:
            raise Fault(
                "API request to endpoint was successful but the response body was not in a valid JSON format."
                f" Response body: '{text}'"
            )
        return found

    def fetch(self, endpoint: str, into: Path) -> None:
        """Write what an endpoint answers to a file. Raises Fault."""
        answer = self.request("GET", endpoint, stream=True)
        with answer:
            if answer.status_code != 200:
                raise _refusal(endpoint, answer.status_code, answer.text, _json_object(answer.text))
            with into.open("wb") as file:
                for piece in answer.iter_content(1 << 20):
                    file.write(piece)

    def request(self, method: str, endpoint: str, **how: Any) -> requests.Response:
        """The server's answer, whatever it says; raises Fault where there is none."""
        import requests

        url = f"{self._address}{endpoint}"
        seconds = float(os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "120"))
        if certificate := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
            how["cert"] = certificate
        redirects = os.environ.get("MLFLOW_ALLOW_HTTP_REDIRECTS", "true").lower() in ("true", "1")
        try:
            return self._open().request(
                method, url, headers=_headers(), verify=_verify(), timeout=seconds, allow_redirects=redirects, **how
            )
        except requests.exceptions.Timeout as error:
            raise Fault(
                f"API request to {url} failed with timeout exception {error}. To increase the timeout, set the"
                " environment variable MLFLOW_HTTP_REQUEST_TIMEOUT to a larger value."
            ) from error
        except requests.exceptions.InvalidURL as error:
            raise Fault(f"Invalid url: {url}") from error
        except requests.exceptions.RequestException as error:
            raise Fault(f"API request to {url} failed with exception {error}") from error

    def _open(self) -> requests.Session:
        """The session of this process, for a child must not use its parent's connections."""
        if self._session is None or self._session[0] != os.getpid():
            self._session = (os.getpid(), _session())
        return self._session[1]

    def _see_workspaces(self) -> None:
        """Raise Fault where the server has no workspaces, for it would pass over the one that is named."""
        workspace, endpoint = os.environ["MLFLOW_WORKSPACE"], "/api/3.0/mlflow/server-info"
        answer = self.request("GET", endpoint)
        if answer.status_code == 404:
            endpoint = "/api/3.0/mlflow/server-features"
            answer = self.request("GET", endpoint)
        if answer.status_code not in (200, 404):
            raise Fault(f"Failed to query {endpoint}: {answer.status_code} {answer.text}", "TEMPORARILY_UNAVAILABLE")
        self._has_workspaces = bool((_json_object(answer.text) or {}).get("workspaces_enabled"))
        if not self._has_workspaces:
            raise Fault(
                f"Active workspace '{workspace}' cannot be used because the remote server does not support workspaces."
                " Restart the server with --enable-workspaces or unset the active workspace.",
                "FEATURE_DISABLED",
            )


def _session() -> requests.Session:
    import requests
    from requests.adapters import HTTPAdapter
    from urllib3.util import Retry

    tries = int(os.environ.get("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "7"))
    retry = Retry(
        total=tries,
        connect=tries,
        read=tries,
        redirect=tries,
        status=tries,
        status_forcelist=_AGAIN,
        allowed_methods=None,
        backoff_factor=float(os.environ.get("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "2")),
        respect_retry_after_header=is_on("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", default=True),
    )
    if hasattr(retry, "backoff_jitter"):  # since urllib3 2
        retry.backoff_jitter = float(os.environ.get("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "1"))
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    return session


def _headers() -> dict[str, str]:
    headers = {"User-Agent": "loradock"}
    if workspace := os.environ.get("MLFLOW_WORKSPACE"):
        headers["X-MLFLOW-WORKSPACE"] = workspace
    user, password = (_credential(f"MLFLOW_TRACKING_{part}") for part in ("USERNAME", "PASSWORD"))
    if user and password:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    return headers


def _credential(name: str) -> str | None:
    """A user's name or password, of the environment or of MLflow's file of credentials."""
    if found := os.environ.get(name):
        return found
    path = Path("~/.mlflow/credentials").expanduser()
    if not path.exists():
        return None
    kept = configparser.ConfigParser()
    kept.read(path)
    return kept["mlflow"].get(name.lower()) if "mlflow" in kept else None


def _verify() -> bool | str:
    """What requests verifies a server's certificate by."""
    careless, path = is_on("MLFLOW_TRACKING_INSECURE_TLS"), os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    if careless and path:
        raise Fault("When 'ignore_tls_verification' is true then 'server_cert_path' must not be set!")
    return path or not careless


def is_on(name: str, *, default: bool = False) -> bool:
    """Whether a variable of MLflow's says yes, as MLflow reads it."""
    found = os.environ.get(name)
    return found.lower() in ("true", "1") if found else default


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _refusal(endpoint: str, status: int, text: str, said: dict[str, Any] | None) -> Fault:
    if said is None:
        words = f"API request to endpoint {endpoint} failed with error code {status} != 200. Response body: '{text}'"
        return Fault(words, _CODES.get(status, "INTERNAL_ERROR"))
    code = str(said.get("error_code") or "INTERNAL_ERROR")
    message = said.get("message", f"Response: {said}")
    return Fault(f"{code}: {message}", _CODES.get(int(code), "INTERNAL_ERROR") if code.isdigit() else code)
