"""Sources of weights: downloads are verified, and errors say what to do."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from format_samples import ARRAYS, write_npz, write_safetensors, write_sharded

from finetune_jax.errors import UserError
from finetune_jax.pretrained import open_weights
from finetune_jax.pretrained.sources import companion_folder, local_file, resolve
from finetune_jax.pretrained.sources import hub as hub_module
from finetune_jax.pretrained.sources.pins import PUBLISHED, other_than_published

ONE = {"w": np.ones(3, np.float32)}


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder; counts requests, and can stop in the middle of a file."""

    requests = 0
    broken = False


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):  # noqa: N802 - the library's name
        self.server.requests += 1
        if self.server.broken:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            return
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Handler, directory=folder)
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        server.folder = folder
        server.url = f"http://127.0.0.1:{server.server_address[1]}"
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FINETUNE_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KERAS_HOME", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def left(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def pinned(server: Server, name: str = "a.npz") -> str:
    path = write_npz(server.folder / name, ONE)
    return f"{server.url}/{name}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"


def test_a_path_is_a_path(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("runs/base.th") == Path("runs/base.th")
    assert resolve("~/base.th") == tmp_path / "base.th"
    assert resolve("odd:name.th") == Path("odd:name.th")


def test_a_pinned_address_is_fetched_once_and_verified_each_time(server, cache, off_umask):
    source = pinned(server)
    path = resolve(source)
    assert path.is_relative_to(cache) and path.name == "a.npz"
    assert off_umask(cache) == []
    with open_weights(path) as weights:
        np.testing.assert_array_equal(weights.read("w"), ONE["w"])
    assert resolve(source) == path
    assert server.requests == 1
    path.write_bytes(b"damaged on the disk")
    assert resolve(source.replace("sha256=", "sha256=").lower()) == path
    assert server.requests == 2
    assert left(cache) == [path]


def test_an_address_without_encryption_is_reported(server, capsys):
    resolve(pinned(server))
    assert "is not encrypted; only its checksum shows" in capsys.readouterr().err


def test_without_a_checksum_nothing_is_fetched_and_the_address_to_write_is_shown(server, cache):
    source = pinned(server)
    url = source.partition("#")[0]
    for wrong in (url, f"{url}#sha256=1234", f"{url}#md5={'0' * 64}"):
        with pytest.raises(UserError, match=rf"{url}#sha256=<64 hexadecimal digits>"):
            resolve(wrong)
    assert server.requests == 0 and not left(cache)


def test_another_checksum_is_an_error_and_nothing_is_kept(server, cache):
    url = pinned(server).partition("#")[0]
    with pytest.raises(
        UserError, match=f"SHA-256 is [0-9a-f]{{64}}, expected {'0' * 64}; the download was"
    ):
        resolve(f"{url}#sha256={'0' * 64}")
    assert not left(cache)


def test_a_download_that_breaks_off_leaves_nothing(server, cache):
    server.broken = True
    with pytest.raises(UserError, match="ended after 4 of 1000|IncompleteRead"):
        resolve(pinned(server))
    assert not left(cache)


def test_what_is_not_there_is_an_error(server, cache):
    pin = f"#sha256={'0' * 64}"
    with pytest.raises(UserError, match=r"none\.npz: cannot be downloaded.*404"):
        resolve(f"{server.url}/none.npz{pin}")
    with pytest.raises(UserError, match="cannot be downloaded"):
        resolve(f"http://127.0.0.1:1/a.npz{pin}")
    with pytest.raises(UserError, match="cannot be downloaded"):
        resolve(f"http://[bad/a.npz{pin}")
    assert not left(cache)


@pytest.mark.parametrize(
    "path", ["", "/", "/a/", "/..", "/%2e%2e", "/a%2f..%2fb", "/a%00b", "/x%5cy"]
)
def test_an_address_cannot_name_a_place_outside_of_the_cache(cache, path):
    with pytest.raises(UserError, match="does not end in the name of a file"):
        resolve(f"http://127.0.0.1:1{path}#sha256={'0' * 64}")
    assert not left(cache)


def test_buckets_need_their_library(cache):
    pytest.importorskip("fsspec")
    try:
        import gcsfs  # noqa: F401
    except ImportError:
        with pytest.raises(UserError, match=r"pip install 'finetune_jax\[gcs\]'"):
            resolve(f"gs://bucket/a.npz#sha256={'0' * 64}")


@pytest.mark.parametrize(
    "source", ["", "  ", "ftp://host/a.npz", "file:///etc/passwd", "htps://a/b"]
)
def test_unknown_sources_are_refused(source):
    with pytest.raises(UserError, match="expected"):
        resolve(source)


def test_keras_weights_are_looked_up_in_its_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    name = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"
    with pytest.raises(UserError, match=rf"{tmp_path}/.keras/models/{name} is missing"):
        resolve("keras:vgg16_notop")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "other"))
    (tmp_path / "other" / "models").mkdir(parents=True)
    (tmp_path / "other" / "models" / name).write_bytes(b"x")
    assert resolve("keras:vgg16_notop").name == name
    with pytest.raises(UserError, match="Did you mean 'vgg16'"):
        resolve("keras:vgg-16")


def test_the_hub_needs_its_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'finetune_jax\[hub\]'"):
        resolve("hf:owner/name")


class Cache:
    """The folder of one repository, in the layout of huggingface_hub."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "models--owner--name"
        self.snapshot = self.folder / "snapshots" / ("0" * 40)
        for place in (self.snapshot, self.folder / "refs", self.folder / "blobs"):
            place.mkdir(parents=True)
        (self.folder / "refs" / "main").write_text("0" * 40)

    def add(self, file: Path, name: str = "") -> None:
        blob = self.folder / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        file.replace(blob)
        (self.snapshot / (name or file.name)).symlink_to(f"../../blobs/{blob.name}")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return Cache(tmp_path / "hub")


def test_a_cached_file_of_the_hub_needs_no_network(hub, tmp_path):
    hub.add(write_safetensors(tmp_path / "model.safetensors", ONE))
    hub.add(write_npz(tmp_path / "other.npz", ONE))
    for source in (
        "hf:owner/name",
        "hf:owner/name@main",
        f"hf:owner/name@{'0' * 40}",
        "hf:owner/name/model.safetensors",
    ):
        assert resolve(source) == hub.snapshot / "model.safetensors"
    assert resolve("hf:owner/name@main/other.npz") == hub.snapshot / "other.npz"
    with open_weights(resolve("hf:owner/name")) as weights:
        assert weights.names() == ("w",)


def test_an_index_of_the_hub_comes_with_its_shards(hub, tmp_path):
    index = write_sharded(tmp_path / "sharded")
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    for file in sorted(index.parent.iterdir()):
        hub.add(file)
    with open_weights(resolve("hf:owner/name")) as weights:
        assert set(weights.names()) == set(ARRAYS)
    (hub.snapshot / shards[1]).unlink()
    with pytest.raises(UserError, match=f"{shards[1]} is not in the cache.*hf download owner/name"):
        resolve("hf:owner/name")


def test_what_is_not_cached_says_how_to_get_it(hub, tmp_path):
    with pytest.raises(UserError, match=r"the list of files is not in the cache .*hf download"):
        resolve("hf:owner/name")
    hub.add(write_safetensors(tmp_path / "model.safetensors", ONE))
    with pytest.raises(UserError, match="Did you mean 'model.safetensors'.*hf download owner/name"):
        resolve("hf:owner/name/modle.safetensors")
    with pytest.raises(UserError, match="hf download owner/name model.safetensors --revision v9"):
        resolve("hf:owner/name@v9/model.safetensors")


def test_several_archives_are_listed_and_one_is_taken(hub, tmp_path):
    hub.add(write_npz(tmp_path / "a.npz", ONE))
    assert resolve("hf:owner/name").name == "a.npz"
    hub.add(write_npz(tmp_path / "b.npz", {"w": np.zeros(2)}))
    with pytest.raises(UserError, match=r"one .npz; append '/' and a file name.*a.npz, b.npz"):
        resolve("hf:owner/name")


@pytest.mark.parametrize(
    "source", ["hf:", "hf:name", "hf:owner/name/../../x", "hf:a/b@", "hf:a b/c"]
)
def test_a_malformed_repository_is_refused(source):
    with pytest.raises(UserError, match=r"expected hf:owner/name\[@revision\]\[/file\]"):
        resolve(source)


def test_files_beside_cached_weights_are_found_without_a_network(hub, tmp_path):
    hub.add(write_safetensors(tmp_path / "model.safetensors", ONE))
    for fetch in (True, False):
        folder = companion_folder("hf:owner/name", ["config.json"], fetch=fetch)
        assert folder == hub.snapshot
    assert companion_folder("hf:owner/other", ["config.json"], fetch=False) is None
    with pytest.raises(UserError, match=r"hf download owner/other"):
        companion_folder("hf:owner/other", ["config.json"], fetch=True)
    assert companion_folder("package:resnet20_cifar10", [], fetch=True) is None
    assert companion_folder(str(tmp_path / "a.pt"), [], fetch=True) == tmp_path
    assert companion_folder(str(tmp_path), [], fetch=True) == tmp_path


def test_files_that_a_repository_lacks_are_asked_for_once(hub, tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub import errors

    class Response:
        headers, request = {}, None

    # Versions before 1.0 have one error for both places.
    lacking = getattr(errors, "RemoteEntryNotFoundError", errors.EntryNotFoundError)
    asked = []

    def download(name, file, **_):
        asked.append(file)
        if file == "other/modules.json":
            raise errors.LocalEntryNotFoundError("no network")
        if file.endswith("config.json"):
            raise lacking("no such file", response=Response())
        return str(hub.snapshot / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    hub.add(write_safetensors(tmp_path / "model.safetensors", ONE))
    names = ["config.json", "modules.json", "tokenizer.json"]
    assert companion_folder("hf:owner/name", names, fetch=True) == hub.snapshot
    assert asked == names
    # Without an answer of the hub the other files are not asked for.
    asked.clear()
    (hub.snapshot / "other").mkdir()
    write_safetensors(hub.snapshot / "other" / "b.safetensors", ONE)
    names = ["modules.json", "tokenizer.json"]
    source = "hf:owner/name/other/b.safetensors"
    assert companion_folder(source, names, fetch=True) == hub.snapshot / "other"
    assert asked == ["other/modules.json"]


def test_a_hub_that_does_not_answer_is_reported_once(hub, capsys):
    import logging

    with pytest.raises(UserError):
        companion_folder("hf:owner/other", ["config.json"], fetch=True)
    logger = logging.getLogger("huggingface_hub.utils._http")
    for retry in (1, 2):
        logger.warning("'no network' thrown while requesting GET https://x/api")
        logger.warning(f"Retrying in 1s [Retry {retry}/5].")
    logger.warning("another warning")
    told = capsys.readouterr().err
    assert told.count("the Hugging Face hub does not answer") == 1
    assert "thrown while" not in told and "Retrying" not in told
    assert sum(isinstance(found, hub_module._RetriesOnce) for found in logger.filters) == 1


def test_a_source_that_ends_in_a_checksum_is_compared_with_it(hub, tmp_path):
    file = write_safetensors(tmp_path / "mine.safetensors", ONE)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert resolve(f"{file}#sha256={digest.upper()}") == file
    assert companion_folder(f"{file}#sha256={digest}", ["config.json"], fetch=False) == tmp_path
    with pytest.raises(UserError, match=f"SHA-256 is {digest}, and .* expects {'0' * 64}"):
        resolve(f"{file}#sha256={'0' * 64}")
    with pytest.raises(UserError, match="expected the 64 hexadecimal digits after #sha256="):
        resolve(f"{file}#sha256=12")
    with pytest.raises(UserError, match="is that of one file"):
        resolve(f"{tmp_path}#sha256={digest}")
    file.write_bytes(file.read_bytes() + b" ")  # the digest of the old content is not remembered
    with pytest.raises(UserError, match="was changed or damaged"):
        resolve(f"{file}#sha256={digest}")
    hub.add(write_safetensors(tmp_path / "model.safetensors", ONE))
    source = f"hf:owner/name@{'0' * 40}/model.safetensors"
    assert resolve(f"{source}#sha256={digest}") == local_file(f"{source}#sha256={digest}")
    with pytest.raises(UserError, match="expects 1111"):
        resolve(f"{source}#sha256={'1' * 64}")


def test_the_shipped_file_is_the_published_one_and_another_content_is_noticed():
    path = resolve("package:resnet20_cifar10")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert other_than_published(path.name, digest) == ""
    assert "another content" in other_than_published("resnet20-12fca82f.th", digest)
    assert other_than_published("mine.th", digest) == ""
    # torch writes the first digits of the digest into the names of its files
    for name, known in PUBLISHED.items():
        if match := re.search(r"-([0-9a-f]{8})\.th", name):
            assert known.startswith(match[1])
