"""Files behind an MLflow server's own artifact proxy, fetched without `import mlflow`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from loradock.registry.outside import inside
from loradock.registry.store.client import FileInfo
from loradock.registry.store.wire import Fault, Wire, is_on, is_plain

_PROXY: Final = "/api/2.0/mlflow-artifacts/artifacts"


def files_at(uri: str, location: str) -> Any:
    """The files at a location, as MLflow's own repositories list and fetch them; `uri` is the store's."""
    signed = is_on("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD")
    if is_proxied(location) and is_plain(uri) and not signed:  # else MLflow's own asks the store behind the server
        return ProxiedFiles(Wire(uri), location)
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(location, tracking_uri=uri)


def is_proxied(location: str) -> bool:
    """Whether the server of the store itself hands these files out."""
    return location.startswith("mlflow-artifacts:/") and not location.startswith("mlflow-artifacts://")


class ProxiedFiles:
    """Listing and fetching files below a location."""

    def __init__(self, wire: Wire, location: str) -> None:
        self._wire, self._location = wire, location
        self._root = location.removeprefix("mlflow-artifacts:").strip("/")

    def list_artifacts(self, path: str = "") -> Sequence[FileInfo]:
        """What is directly in a directory; nothing for a file, and for what is not there."""
        found = self._wire.call("GET", _PROXY, path=_joined(self._root, path))
        files = files_in(found, path)
        alone = len(files) == 1 and not files[0].is_dir and path
        return [] if alone and files[0].path == _joined(path, path.rpartition("/")[2]) else files

    def download_artifacts(self, path: str, dst_path: str) -> str:
        """Fetch a file, or all that is below a directory, and return where it is."""
        into, what = Path(dst_path), f"the listing of {self._location}"
        found = [file for file in self._below(path) if not file.is_dir]
        for name in [file.path for file in found] if found or not path else [path]:
            target = inside(into, name, what=what)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._wire.fetch(f"{_PROXY}/{quote(_joined(self._root, name))}", target)
            except (Fault, OSError) as error:
                raise Fault(
                    "The following failures occurred while downloading one or more artifacts from"
                    f" {self._location}:\n##### File {name} #####\n{error}",
                    getattr(error, "error_code", "INTERNAL_ERROR"),
                ) from error
        return str(inside(into, path, what=what) if path else into)

    def _below(self, path: str) -> Iterator[FileInfo]:
        for file in self.list_artifacts(path):
            yield file
            if file.is_dir and file.path != path:
                yield from self._below(file.path)


def files_in(answer: Any, below: str = "") -> Sequence[FileInfo]:
    """The files that a server lists, by their paths."""
    found = (
        FileInfo(
            _joined(below, row["path"]), bool(row.get("is_dir")), int(row["file_size"]) if "file_size" in row else None
        )
        for row in answer.get("files", ())
    )
    return sorted(found, key=lambda file: file.path)


def _joined(directory: str, path: str) -> str:
    return "/".join(filter(None, (directory, path)))
