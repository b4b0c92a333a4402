"""CIFAR-10 over the network: a server on the loopback that goes on, breaks off, lies, refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_readers import cifar_files, pack
from typer.testing import CliRunner

import widelimit as wl
from widelimit.cli import app
from widelimit.data import download
from widelimit.data.download import CIFAR10, Published, Received, fetch, may_follow
from widelimit.files import HeldByAnother, locked_file

CONTENT = np.random.default_rng(0).bytes(700_000)  # three reads


@dataclass
class Shop:
    """What the server has, and what it does wrong.

    Parameters
    ----------
    content : bytes
    breaks : int or None
        Bytes after which it hangs up.
    hangs : bool
        Whether it is silent then instead.
    ranges : bool
        Whether it sends the rest of a file.
    measured : bool
        Whether it says how long its answer is.
    status : int
        That of refusals; 200: none.
    moved : str
        Where it leads to, from /moved.
    asked : list
        Path, and the Range of each request.
    """

    content: bytes = CONTENT
    breaks: int | None = None
    hangs: bool = False
    ranges: bool = True
    measured: bool = True
    status: int = 200
    moved: str = ""
    asked: list[tuple[str, str | None]] = field(default_factory=list[tuple[str, str | None]])
    done: threading.Event = field(default_factory=threading.Event)
    address: str = ""

    def published(self, content: bytes | None = None) -> Published:
        content = self.content if content is None else content
        digest = hashlib.sha256(content).hexdigest()
        return Published(f"{self.address}/a.tar.gz", len(content), digest)


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Generator[Shop]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    shop = Shop()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers["Range"]
            shop.asked.append((self.path, wanted))
            if shop.status != 200:
                return self.send_error(shop.status)
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", shop.moved)
                return self.end_headers()
            first, size = 0, len(shop.content)
            if wanted and shop.ranges:
                first = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if first >= size:
                    return self.send_error(416)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{size - 1}/{size}")
            else:
                self.send_response(200)
            if shop.measured:
                self.send_header("Content-Length", str(size - first))
            self.end_headers()
            self.wfile.write(shop.content[first : shop.breaks])
            if shop.hangs:
                self.wfile.flush()
                shop.done.wait(30)
            return None

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    shop.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield shop
    shop.done.set()
    server.shutdown()
    thread.join()
    server.server_close()


def get(file: Published, folder: Path) -> bytes:
    return fetch(file, folder, progress=False).read_bytes()


def test_a_file_is_fetched_once(shop: Shop, tmp_path: Path) -> None:
    states: list[Received] = []
    folder = tmp_path / "new" / "folder"
    path = fetch(shop.published(), folder, progress=states.append)
    assert path == folder / "a.tar.gz"
    assert path.read_bytes() == CONTENT
    assert (states[0].share, states[-1].share) == (0, 1)
    assert len(states) > 3
    assert str(states[-1]) == "1 MB of 1 MB"
    assert str(Received(40_000_000, 170_000_000, 2e6)) == "40 MB of 170 MB, 2 MB/s, 1 min 05 s left"
    assert get(shop.published(), folder) == CONTENT
    assert shop.asked == [("/a.tar.gz", None)]
    assert {one.name for one in folder.iterdir()} == {"a.tar.gz", ".lock"}


def test_what_broke_off_is_gone_on_with(shop: Shop, tmp_path: Path) -> None:
    file, shop.breaks = shop.published(), 300_000
    with pytest.raises(
        ConnectionError,
        match=r"ends after 300,000 of 700,000 bytes; what has come is kept, the same command goes",
    ):
        get(file, tmp_path)
    assert not (tmp_path / "a.tar.gz").exists()
    assert (tmp_path / "a.tar.gz.partial").read_bytes() == CONTENT[:300_000]
    shop.breaks = None
    states: list[Received] = []
    assert fetch(file, tmp_path, progress=states.append).read_bytes() == CONTENT
    assert shop.asked[1:] == [("/a.tar.gz", "bytes=300000-")]
    assert states[0].count == 300_000
    assert not (tmp_path / "a.tar.gz.partial").exists()


@pytest.mark.parametrize("kept", [200_000, 700_000, 800_000])
def test_a_server_without_ranges_begins_again(shop: Shop, tmp_path: Path, kept: int) -> None:
    shop.ranges = False
    (tmp_path / "a.tar.gz.partial").write_bytes((CONTENT * 2)[:kept])
    assert get(shop.published(), tmp_path) == CONTENT
    # What is whole already needs no server.
    assert len(shop.asked) == (kept != 700_000)


def test_the_rest_of_another_file_is_not_taken(shop: Shop, tmp_path: Path) -> None:
    file = shop.published()
    (tmp_path / "a.tar.gz.partial").write_bytes(CONTENT[:500_000])
    for other in (CONTENT + b"more", CONTENT[:400_000]):  # 206 of another size, and 416
        shop.content = other
        with pytest.raises(ConnectionError, match=r"must have 700,000 bytes, the server offers"):
            get(file, tmp_path)
        assert [wanted for _, wanted in shop.asked] == ["bytes=500000-", None]
        shop.asked.clear()
    shop.content = CONTENT
    assert get(file, tmp_path) == CONTENT


def test_a_wrong_digest_is_refused_and_deleted(shop: Shop, tmp_path: Path) -> None:
    file = shop.published()
    shop.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    found = hashlib.sha256(shop.content).hexdigest()
    with pytest.raises(ValueError, match=f"{file.sha256}, what came has {found}: it was deleted"):
        get(file, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == [".lock"]
    # And what is there already is never written over.
    (tmp_path / "a.tar.gz").write_bytes(shop.content)
    with pytest.raises(ValueError, match=f"digest {file.sha256}, it has {found}: delete it"):
        get(file, tmp_path)
    assert (tmp_path / "a.tar.gz").read_bytes() == shop.content


def test_a_beginning_that_is_damaged_is_found_in_the_end(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz.partial").write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="it was deleted; try again"):
        get(shop.published(), tmp_path)
    assert get(shop.published(), tmp_path) == CONTENT


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_server_that_refuses(shop: Shop, tmp_path: Path, status: int) -> None:
    shop.status = status
    with pytest.raises(
        ConnectionError, match=rf"a\.tar\.gz cannot be fetched: .* answers {status}"
    ):
        get(shop.published(), tmp_path)


def test_nobody_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        file = Published(f"http://127.0.0.1:{taken.getsockname()[1]}/a", 1, "")
        with pytest.raises(ConnectionError, match="refused"):
            get(file, tmp_path)
        monkeypatch.setenv("http_proxy", file.url)
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(ConnectionError, match="by way of the proxy that http_proxy names"):
            get(file, tmp_path)


def test_a_server_that_says_no_more(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_PATIENCE", 0.1)
    shop.breaks, shop.hangs = 100, True
    with pytest.raises(ConnectionError, match="timed out"):
        get(shop.published(), tmp_path)
    assert (tmp_path / "a.tar.gz.partial").read_bytes() == CONTENT[:100]


def test_no_more_is_taken_than_there_should_be(shop: Shop, tmp_path: Path) -> None:
    file = replace(shop.published(CONTENT[:1000]), size=len(CONTENT))
    with pytest.raises(ValueError, match="it was deleted"):
        get(file, tmp_path)
    with pytest.raises(ConnectionError, match="must have 1,000 bytes, the server offers 700000"):
        get(shop.published(CONTENT[:1000]), tmp_path)
    shop.measured = False
    assert get(shop.published(CONTENT[:1000]), tmp_path) == CONTENT[:1000]


def test_redirects(shop: Shop, tmp_path: Path) -> None:
    file = replace(shop.published(), url=f"{shop.address}/moved")
    shop.moved = f"{shop.address}/elsewhere"
    (tmp_path / "moved.partial").write_bytes(CONTENT[:1000])
    assert get(file, tmp_path) == CONTENT
    assert shop.asked == [("/moved", "bytes=1000-"), ("/elsewhere", "bytes=1000-")]
    for place in ("http://example.org/x", "ftp://127.0.0.1/x", "file:///etc/passwd"):
        shop.moved = place
        with pytest.raises(ConnectionError, match=r"leads to|not allowed"):
            get(file, tmp_path / "other")


@pytest.mark.parametrize(
    ("old", "new", "may"),
    [
        ("https://a.org/x", "https://b.org/x", True),
        ("https://a.org/x", "http://a.org/x", False),
        ("https://a.org/x", "http://127.0.0.1/x", False),
        ("http://localhost:1/x", "http://localhost:2/x", True),
        ("http://localhost:1/x", "http://localhost.evil.org/x", False),
        ("http://localhost:1/x", "https://a.org/x", True),
    ],
)
def test_where_a_server_may_lead(old: str, new: str, may: bool) -> None:
    assert may_follow(old, new) is may


def test_a_full_disk_is_told_before(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(place: object) -> Any:
        return type("usage", (), {"total": 1_000_000, "free": 500_000})

    monkeypatch.setattr("shutil.disk_usage", usage)
    with pytest.raises(OSError, match=r"the disk is full: .* MB are needed"):
        get(shop.published(), tmp_path)
    assert shop.asked == []
    (tmp_path / "a.tar.gz.partial").write_bytes(CONTENT[:300_000])  # the rest fits
    assert get(shop.published(), tmp_path) == CONTENT


def test_one_process_at_a_time(shop: Shop, tmp_path: Path) -> None:
    with (
        locked_file(tmp_path / ".lock"),
        pytest.raises(HeldByAnother, match="another process is writing there"),
    ):
        get(shop.published(), tmp_path)


def test_a_link_is_not_written_through(shop: Shop, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    (tmp_path / "a.tar.gz.partial").symlink_to(mine)
    with pytest.raises(OSError, match=r"a\.tar\.gz\.partial"):
        get(shop.published(), tmp_path)
    assert mine.read_bytes() == b"mine"


# ---------------------------------------------------------------- by name, and on the command line


@pytest.fixture
def cifar(shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A small CIFAR-10 in the place of the official one, which is nowhere on this machine."""
    archive = pack(tmp_path / "small.tar.gz", cifar_files("python", 10))
    shop.content = archive.read_bytes()
    monkeypatch.delenv("WIDELIMIT_DATA", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("widelimit.data.load.SYSTEM_FOLDER", tmp_path / "none")
    file = replace(shop.published(), url=f"{shop.address}/{CIFAR10.name}")
    monkeypatch.setattr("widelimit.data.load._FETCHED", {"cifar10": file})
    return shop


def test_by_name(cifar: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match="let --download of widelimit reproduce or rank"):
        wl.load_dataset("cifar10")
    data = wl.load_dataset("cifar10:train", download=True)
    assert (len(data.x_train) + len(data.x_test), data.split) == (10, "drawn")
    place = tmp_path / "home" / "widelimit" / CIFAR10.name
    assert place.read_bytes() == cifar.content
    assert wl.load_dataset("cifar10").files_train is not None  # from now on
    wl.load_dataset("cifar10", download=True)
    assert len(cifar.asked) == 1
    place.write_bytes(cifar.content[:-1] + b"x")
    with pytest.raises(ValueError, match="delete it, and it will be fetched"):
        wl.load_dataset("cifar10", download=True)
    # Where it is in another version, that one is read.
    folder = tmp_path / "mine" / "cifar10"
    folder.mkdir(parents=True)
    for name, content in cifar_files("binary", 10).items():
        (folder / name).write_bytes(content)
    monkeypatch.setenv("WIDELIMIT_DATA", str(folder.parent))
    assert wl.load_dataset("cifar10", download=True).files_train is None
    assert len(cifar.asked) == 1
    monkeypatch.setenv("WIDELIMIT_DATA", str(tmp_path / "empty"))
    place.unlink()
    wl.load_dataset("cifar10", download=True)
    assert (tmp_path / "empty" / CIFAR10.name).read_bytes() == cifar.content


@pytest.mark.parametrize("source", ["digits", "cifar100", "./cifar10", (CONTENT, CONTENT)])
def test_nothing_else_is_fetched(source: Any) -> None:
    with pytest.raises(ValueError, match="only cifar10 can be fetched, got"):
        wl.load_dataset(source, download=True)


def test_the_official_file() -> None:
    assert CIFAR10.url == "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    assert (CIFAR10.size, len(bytes.fromhex(CIFAR10.sha256))) == (170_498_071, 32)


def test_the_command_line(cifar: Shop, tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    options = ["--column", "cntk-v", "--depths", "3", "--out", str(out)]
    call = ["reproduce", "table1", "cifar10", "--download", "--classes", "10", *options]
    (tmp_path / "t.json").write_text("mine")
    found = CliRunner().invoke(app, call)
    assert found.exit_code == 2
    assert cifar.asked == []  # nothing is fetched for a record that would not be written
    found = CliRunner().invoke(app, [*call, "--overwrite"])
    assert f"fetching {cifar.address}/{CIFAR10.name} (0 MB) to {tmp_path}/home" in found.stderr
    assert "training images of cifar10 have none of 8 of the 10 classes" in found.stderr
    assert len(cifar.asked) == 1
    cifar.content = b"other"
    cifar.asked.clear()
    (tmp_path / "home" / "widelimit" / CIFAR10.name).unlink()
    for command in (["reproduce", "small-data"], ["rank"]):
        found = CliRunner().invoke(app, [*command, "cifar10", "--download"])
        assert found.exit_code == 2
        assert "cannot be fetched: it must have" in found.stderr


INTERRUPTED = """
import sys
from widelimit.data import download, load
file = download.Published(sys.argv[1], int(sys.argv[2]), sys.argv[3])
load._FETCHED = {"cifar10": file}
load.SYSTEM_FOLDER /= "none"
sys.argv[1:] = ["reproduce", "table1", "--download", "--out", "t.json"]
from widelimit.__main__ import main
main()
"""


def test_ctrl_c_keeps_what_came(cifar: Shop, tmp_path: Path) -> None:
    cifar.content = CONTENT
    cifar.breaks, cifar.hangs = 600_000, True
    file = replace(cifar.published(), url=f"{cifar.address}/{CIFAR10.name}")
    words = [sys.executable, "-c", INTERRUPTED, file.url, str(file.size), file.sha256]
    env = os.environ | {"XDG_DATA_HOME": str(tmp_path / "home")}
    child = subprocess.Popen(words, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    assert child.stderr is not None
    assert child.stderr.readline().startswith("fetching http://127.0.0.1")
    partial = tmp_path / "home" / "widelimit" / f"{CIFAR10.name}.partial"
    while not partial.exists() or not partial.stat().st_size:
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)
    assert child.returncode == 130
    kept = partial.read_bytes()
    assert CONTENT.startswith(kept)
    told_kept = f"{len(kept) / 1e6:.0f} MB of {CIFAR10.name} are kept"
    assert f"interrupted, {told_kept}, the same command goes on" in told
    assert not (tmp_path / "t.json").exists()
    assert json.dumps(cifar.asked) == json.dumps([[f"/{CIFAR10.name}", None]])
