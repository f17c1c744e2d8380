"""Nothing but the registered bytes ever leaves the cache, whatever happened to the store, the download or the disk."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from loradock.registry.artifact import CONFIG, MANIFEST, WEIGHTS, verify
from loradock.registry.check import read_shapes, shapes_of_config
from loradock.registry.errors import BadInput, DigestMismatch, LoradockError, NotServable, Unreachable
from loradock.registry.records import Version
from loradock.registry.refs import VersionRef
from loradock.registry.settings import Settings
from loradock.registry.store import Store
from loradock.registry.versions import register
from loradock.serving.cache import Cache
from tests.support.adapters import BASE_CONFIG, log_adapter, make_version, write_adapter
from tests.support.serving.cached import assert_whole


class FakeStore:
    """A store of one adapter whose bytes a test may spoil; counts what is fetched."""

    def __init__(self, files: Path) -> None:
        self.files = files
        self.fetched = 0
        self.error: Exception | None = None

    def download(self, _: Version, into: Path) -> None:
        self.fetched += 1
        shutil.copytree(self.files, into, dirs_exist_ok=True, symlinks=True)
        if self.error:
            raise self.error


@pytest.fixture
def version(store: Store, tmp_path: Path) -> Version:
    return make_version(store, tmp_path / "adapter")


@pytest.fixture
def fake_store(version: Version, tmp_path: Path) -> FakeStore:
    return FakeStore(tmp_path / "adapter")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def cache_of(root: Path, fake_store: FakeStore, max_rank: int = 16) -> Cache:
    return Cache(root, fake_store.download, base=shapes_of_config(BASE_CONFIG), max_rank=max_rank)


def names(root: Path) -> list[str]:
    """What lies in the cache, but for its locks and its times."""
    return sorted(path.name for path in root.iterdir() if path.name not in (".locks", ".used"))


def flip(path: Path) -> None:
    """Change one byte in the middle, whatever the file's mode."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_it_fetches_once_into_a_directory_named_by_digest(version: Version, fake_store: FakeStore, root: Path) -> None:
    cache = cache_of(root, fake_store)
    directory = cache.directory(version).path
    assert directory == root / version.facts.digest
    assert cache.directory(version).path == directory
    assert fake_store.fetched == 1
    verify(directory, version.facts.digest, what="the cached copy")
    assert names(root) == [version.facts.digest]


@pytest.mark.parametrize("copied", [False, True])
def test_it_fetches_from_a_real_store(copied: bool, store: Store, version: Version, settings: Settings) -> None:
    if copied:  # as MLflow moves versions from one registered model to another
        copy = store.client.copy_model_version(f"models:/{version.ref}", "other")
        version = store.version(VersionRef("other", int(copy.version)))
        assert version.source.startswith("models:/support-bot/")
    cache = Cache(
        settings.adapters,
        lambda item, into: store.download(item.source, into, what=str(item.ref)),
        base=shapes_of_config(BASE_CONFIG),
        max_rank=16,
    )
    assert (cache.directory(version).path / WEIGHTS).is_file()


def test_a_file_that_cannot_be_fetched_says_why_and_not_that_it_failed(
    store: Store, version: Version, settings: Settings, tmp_path: Path
) -> None:
    (weights,) = settings.artifacts.rglob(WEIGHTS)
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    cache = Cache(
        settings.adapters,
        lambda version, into: store.download(version.source, into, what=str(version.ref)),
        base=shapes_of_config(BASE_CONFIG),
        max_rank=16,
    )
    with pytest.raises(LoradockError, match=r"a file of support-bot/1 cannot be fetched .* outside the artifact"):
        cache.directory(version)


def test_what_it_gives_is_closed_for_writing(version: Version, fake_store: FakeStore, root: Path) -> None:
    directory = cache_of(root, fake_store).directory(version).path
    assert not any(path.stat().st_mode & 0o222 for path in (directory, *directory.rglob("*")))


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_tampered_download_is_refused_and_leaves_nothing(
    name: str, version: Version, fake_store: FakeStore, root: Path
) -> None:
    flip(fake_store.files / name)
    with pytest.raises(DigestMismatch, match="changed"):
        cache_of(root, fake_store).directory(version)
    assert names(root) == []


def test_a_truncated_download_is_refused(version: Version, fake_store: FakeStore, root: Path) -> None:
    weights = fake_store.files / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DigestMismatch):
        cache_of(root, fake_store).directory(version)


def test_a_missing_manifest_is_refused(version: Version, fake_store: FakeStore, root: Path) -> None:
    (fake_store.files / MANIFEST).unlink()
    with pytest.raises(DigestMismatch, match="missing"):
        cache_of(root, fake_store).directory(version)


def test_an_extra_file_is_refused(version: Version, fake_store: FakeStore, root: Path) -> None:
    (fake_store.files / "adapter_model.bin").write_bytes(b"a pickle")
    with pytest.raises(DigestMismatch, match="extra"):
        cache_of(root, fake_store).directory(version)


def test_a_manifest_that_leads_outside_is_refused(version: Version, fake_store: FakeStore, root: Path) -> None:
    entry = {"path": "../../etc/passwd", "size": 1, "sha256": "0" * 64}
    (fake_store.files / MANIFEST).write_text(json.dumps({"files": [entry]}))
    with pytest.raises(LoradockError, match="outside"):
        cache_of(root, fake_store).directory(version)


@pytest.mark.parametrize(
    "digest", ["", "..", "../" * 3 + "etc", "A" * 64, "0" * 63, "0" * 64 + "\n", "0" * 32 + "/" + "0" * 31]
)
def test_a_digest_that_is_none_touches_no_path(
    digest: str, version: Version, fake_store: FakeStore, root: Path
) -> None:
    bad = version.model_copy(update={"facts": version.facts.model_copy(update={"digest": digest})})
    with pytest.raises(BadInput):
        cache_of(root, fake_store).directory(bad)
    assert fake_store.fetched == 0


def test_a_link_in_a_download_is_refused_even_to_the_right_bytes(
    version: Version, fake_store: FakeStore, root: Path, tmp_path: Path
) -> None:
    elsewhere = (fake_store.files / WEIGHTS).rename(tmp_path / "elsewhere")
    (fake_store.files / WEIGHTS).symlink_to(elsewhere)
    with pytest.raises(DigestMismatch, match="link"):
        cache_of(root, fake_store).directory(version)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "missing", "extra", "linked", "a file", "a link"])
def test_a_damaged_copy_is_replaced_and_never_given_out(
    damage: str, version: Version, fake_store: FakeStore, root: Path, tmp_path: Path
) -> None:
    cache = cache_of(root, fake_store)
    directory = cache.directory(version).path
    directory.chmod(0o755)
    weights = directory / WEIGHTS
    match damage:
        case "flipped":
            flip(weights)
        case "truncated":
            weights.chmod(0o644)
            os.truncate(weights, 10)
        case "missing":
            weights.unlink()
        case "extra":
            (directory / "more").write_text("more")
        case "linked":
            weights.rename(tmp_path / "elsewhere")
            weights.symlink_to(tmp_path / "elsewhere")
        case "a file":
            shutil.rmtree(directory)
            directory.write_text("in the way")
        case "a link":
            directory.rename(tmp_path / "elsewhere")
            directory.symlink_to(tmp_path / "elsewhere")
    again = cache.directory(version).path
    assert (again, fake_store.fetched) == (directory, 2)
    assert not any(path.is_symlink() for path in (again, *again.rglob("*")))
    verify(again, version.facts.digest, what="the replaced copy")
    assert names(root) == [version.facts.digest]


def test_a_damaged_copy_stays_out_of_use_while_the_store_is_out_of_reach(
    version: Version, fake_store: FakeStore, root: Path
) -> None:
    cache = cache_of(root, fake_store)
    flip(cache.directory(version).path / WEIGHTS)
    fake_store.error = Unreachable("MLflow is out of reach")
    with pytest.raises(Unreachable):
        cache.directory(version)
    fake_store.error = None
    cache.directory(version)


def test_a_whole_copy_needs_no_store(version: Version, fake_store: FakeStore, root: Path) -> None:
    cache_of(root, fake_store).directory(version)
    fake_store.error = Unreachable("MLflow is out of reach")
    assert cache_of(root, fake_store).directory(version).path.is_dir()


def aged(root: Path, version: Version, seconds: float) -> None:
    """Let the last that anybody asked for an adapter be so long ago."""
    at = time.time() - seconds
    os.utime(root / ".used" / version.facts.digest, (at, at))


class Shelf:
    """Four adapters of the same size, asked for an hour ago and before, the first one most recently."""

    def __init__(self, store: Store, tmp_path: Path, root: Path) -> None:
        self.versions = [make_version(store, tmp_path / f"a{seed}", f"a{seed}", seed=seed) for seed in range(4)]
        self.store, self.root = store, root
        cache = self.cache()
        (self.size,) = {size_of(cache.directory(version).path) for version in self.versions}
        for number, version in enumerate(self.versions):
            aged(root, version, 3600.0 * (1 + number))

    def cache(self, most: int | None = None) -> Cache:
        def download(version: Version, into: Path) -> None:
            self.store.download(version.source, into, what=str(version.ref))

        return Cache(self.root, download, base=shapes_of_config(BASE_CONFIG), max_rank=16, most=most)

    def held(self) -> list[int]:
        return [at for at, version in enumerate(self.versions) if (self.root / version.facts.digest).is_dir()]


def size_of(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*"))


@pytest.fixture
def shelf(store: Store, tmp_path: Path, root: Path) -> Shelf:
    return Shelf(store, tmp_path, root)


def test_a_limit_drops_what_was_not_asked_for_the_longest(shelf: Shelf) -> None:
    shelf.cache().directory(shelf.versions[0])
    assert shelf.held() == [0, 1, 2, 3]
    shelf.cache(most=2 * shelf.size).directory(shelf.versions[3])
    assert shelf.held() == [0, 3]
    assert not assert_whole(shelf.root)
    assert {path.name for path in (shelf.root / ".used").iterdir()} == {
        shelf.versions[at].facts.digest for at in shelf.held()
    }
    shelf.cache(most=2 * shelf.size).directory(shelf.versions[1])
    assert shelf.held() == [0, 1, 3], "what was asked for just now stays, and another replica may be about to load it"


def test_what_is_to_be_kept_stays_above_a_limit(shelf: Shelf, caplog: pytest.LogCaptureFixture) -> None:
    keep = {shelf.versions[at].facts.digest for at in (1, 3)}
    shelf.cache(most=1).directory(shelf.versions[0], keep)
    assert shelf.held() == [0, 1, 3]
    assert "more than LORADOCK_SERVE_CACHE_GIB" in caplog.text


def test_what_was_dropped_is_fetched_again(shelf: Shelf) -> None:
    cache = shelf.cache(most=shelf.size)
    cache.directory(shelf.versions[0])
    assert shelf.held() == [0]
    found = cache.directory(shelf.versions[2])
    found.check("it")
    verify(found.path, shelf.versions[2].facts.digest, what="it")


def test_an_adapter_that_somebody_is_at_is_not_dropped(shelf: Shelf) -> None:
    with (shelf.root / ".locks" / shelf.versions[3].facts.digest[:2]).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        shelf.cache(most=2 * shelf.size).directory(shelf.versions[0])
    assert shelf.held() == [0, 3]


def test_a_download_that_breaks_off_leaves_nothing(version: Version, fake_store: FakeStore, root: Path) -> None:
    fake_store.error = Unreachable("the connection was cut")
    with pytest.raises(Unreachable):
        cache_of(root, fake_store).directory(version)
    assert names(root) == []


@pytest.mark.chance
def test_replicas_that_fetch_at_once_download_once(version: Version, fake_store: FakeStore, root: Path) -> None:
    barrier = threading.Barrier(4)
    found: list[Path] = []

    def run() -> None:
        cache = cache_of(root, fake_store)
        barrier.wait(timeout=30)
        found.append(cache.directory(version).path)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert found == [root / version.facts.digest] * 4
    assert fake_store.fetched == 1
    assert names(root) == [version.facts.digest]


def test_an_adapter_above_the_rank_limit_is_not_servable_here(store: Store, tmp_path: Path, root: Path) -> None:
    version = make_version(store, tmp_path / "wide", "wide", rank=32)
    fake_store = FakeStore(tmp_path / "wide")
    with pytest.raises(NotServable, match="rank is 32"):
        cache_of(root, fake_store).directory(version)
    assert cache_of(root, fake_store, max_rank=32).directory(version).path.is_dir()
    assert fake_store.fetched == 1


def test_an_adapter_of_a_module_that_the_base_lacks_is_not_servable_here(
    store: Store, tmp_path: Path, root: Path, base_dir: Path
) -> None:
    """vLLM would pass it over without a word."""
    tensors = load_file(
        write_adapter(tmp_path / "a", config={"target_modules": ["q_proj", "o_proj", "z_proj"]}) / WEIGHTS
    )
    more = {name.replace("o_proj", "z_proj"): value for name, value in tensors.items()}
    save_file(tensors | more, tmp_path / "a" / WEIGHTS)
    version = register(store, log_adapter(store, tmp_path / "a"), "odd")
    cache = Cache(root, FakeStore(tmp_path / "a").download, base=read_shapes(base_dir), max_rank=16)
    with pytest.raises(NotServable, match="2 modules are not in the base"):
        cache.directory(version)


def test_an_adapter_of_another_shape_is_not_servable_here(store: Store, tmp_path: Path, root: Path) -> None:
    version = make_version(store, tmp_path / "other", "other", hidden=640)
    with pytest.raises(NotServable, match="640 wide"):
        cache_of(root, FakeStore(tmp_path / "other")).directory(version)
