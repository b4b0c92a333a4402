"""Files that are not ours, by an attacker: of every kind, of every size, and damaged at random."""

import contextlib
import gzip
import io
import json
import os
import shutil
import signal
import socket
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

import widelimit as wl
from widelimit import reading
from widelimit.bench.images import Images
from widelimit.data.idx import read_idx
from widelimit.data.image import read_image
from widelimit.data.npz import load_npz
from widelimit.estimators.saved import _checksum, _document_checksum, load_model, save_model
from widelimit.job import describe_store, read_array, read_network
from widelimit.matrices.matrix import read_manifest
from widelimit.matrices.objects import open_objects
from widelimit.matrices.store import StoreError, TileStore, _digest
from widelimit.reading import open_array, open_arrays, parse_json, read_bytes, read_json
from widelimit.solvers.checkpoint import seal

# Targets of noise are best predicted by next to nothing.
pytestmark = pytest.mark.filterwarnings("ignore:(ridge|time)=.loo. chose:UserWarning")

X = np.random.default_rng(0).random((3, 4, 5))
HANG = 60  # seconds after which a reader is said to hang


@contextlib.contextmanager
def bounded(memory: float = 20e6, measured: bool = True) -> Iterator[None]:
    """Fail if the block takes more memory, where that is measured, or does not end at all."""

    def stop(*_: object) -> None:
        pytest.fail("it does not end")  # no Exception: readers make ValueError of those

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANG)
    if measured:
        tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert peak < memory


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def npz(compressed: bool = False, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def header(shape: object, descr: object = "|u1", version: bytes = b"\1\0") -> bytes:
    """The beginning of an array file, which may say anything."""
    text = repr({"descr": descr, "fortran_order": False, "shape": shape}).encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(text))
    return b"\x93NUMPY" + version + size + text


def archive(method: int = zipfile.ZIP_STORED, **members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, content in members.items():
            made.writestr(f"{name}.npy", content)
    return file.getvalue()


def read(source: Path | bytes) -> np.ndarray:
    with open_array(source, "it" if isinstance(source, bytes) else None) as stored:
        return stored.read()


def read_all(source: Path | bytes) -> dict[str, np.ndarray]:
    with open_arrays(source, "it" if isinstance(source, bytes) else None) as stored:
        return {name: array.read() for name, array in stored.items()}


# ---------------------------------------------------------------- kinds of files


def no_model(path: Path) -> None:
    path.rename(path.with_name("model.json"))
    load_model(path.parent)


def no_store(path: Path) -> None:
    path.rename(path.with_name("zarr.json"))
    wl.open_gram(path.parent)


def no_checkpoint(path: Path) -> None:
    path.rename(path.with_name("preconditioner.npz"))
    wl.solvers.solve_conjugate(np.eye(3), np.ones(3), 0.1, checkpoint=path.parent)


READERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: read_bytes(path, 1000),
    "json": lambda path: read_json(path, 1000),
    "array": read,
    "arrays": read_all,
    "kernel": read_array,
    "data set": load_npz,
    "idx": read_idx,
    "image": lambda path: read_image(path, path.parent, ["PNG"]),
    "network": lambda path: read_network(str(path)),
    "benchmark": Images,
    "model": no_model,
    "store": no_store,
    "checkpoint": no_checkpoint,
}


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "folder", "sparse"])
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_small_regular_file_is_refused_at_once(
    tmp_path: Path, reader: str, kind: str
) -> None:
    path = tmp_path / "a" / "file.json"
    path.parent.mkdir()
    with contextlib.ExitStack() as stack:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            with contextlib.chdir(path.parent):  # the name of a socket must be short
                stack.enter_context(socket.socket(socket.AF_UNIX)).bind(path.name)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        else:
            with path.open("wb") as file:
                file.truncate(2**40)
        with bounded(), pytest.raises(ValueError, match=r": [a-z]") as caught:
            READERS[reader](path)
    message = str(caught.value)
    assert path.name in message or str(path.parent) in message


def test_a_pipe_that_comes_after_the_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    seen = os.stat(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(os, "stat", lambda *_: seen)
    with bounded(), pytest.raises(ValueError, match="a pipe, device or socket"):
        read_bytes(tmp_path / "pipe", 9)


def test_a_lock_that_is_a_pipe(tmp_path: Path) -> None:
    wl.gram(wl.ntk_dense(2), X[0], store=tmp_path / "k.zarr")
    (tmp_path / "k.zarr" / ".lock").unlink()
    os.mkfifo(tmp_path / "k.zarr" / ".lock")
    with bounded(), pytest.raises(ValueError, match="regular file"):
        describe_store(str(tmp_path / "k.zarr"))


def test_a_tile_that_is_a_pipe_or_leads_elsewhere_is_damaged(tmp_path: Path) -> None:
    made = wl.gram(wl.ntk_dense(2), X[0], store=tmp_path / "k.zarr")
    tile = next(path for path in (tmp_path / "k.zarr" / "c").rglob("*") if path.is_file())
    tile.rename(tmp_path / "tile")
    tile.symlink_to(tmp_path / "tile")
    with pytest.raises(StoreError, match="is damaged"):
        made[:, :]
    tile.unlink()
    os.mkfifo(tile)
    with bounded(), pytest.raises(StoreError, match="is damaged"):
        made[:, :]


def test_links(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(npy(X))
    (folder / "own").write_bytes(npy(X))
    (folder / "link").symlink_to("own")
    (folder / "out").symlink_to("../secret")
    (folder / "up").symlink_to("..")
    (tmp_path / "alias").symlink_to(folder)
    assert read_bytes(folder / "link", 10**4, folder) == npy(X)
    assert read_bytes(tmp_path / "alias" / "own", 10**4, tmp_path / "alias") == npy(X)
    assert read_bytes(folder / "out", 10**4) == npy(X)
    for name in ("out", "up/secret", "../secret"):
        with pytest.raises(ValueError, match=r"must lie in .*/folder, it leads to .*/secret"):
            read_bytes(folder / name, 10**4, folder)
        with (
            pytest.raises(ValueError, match="it leads to"),
            open_array(folder / name, folder=folder),
        ):
            pass


def test_errors_of_the_system_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    for reader in (read, read_all, read_array, load_npz, partial(read_json, at_most=9)):
        with pytest.raises(FileNotFoundError, match=r"x\.npz"):
            reader(path)
    path.write_bytes(npz(x=X))

    class Broken(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    @contextlib.contextmanager
    def opened(*_: object) -> Iterator[io.BytesIO]:
        yield Broken(b"")

    monkeypatch.setattr(reading, "open_regular", opened)
    with pytest.raises(OSError, match="Input/output error"):
        read_all(path)


# ---------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"[1]", "got a list"),
        (b"null", "got a NoneType"),
        (b"{} {}", "Extra data"),
        (b"\xff\xfe{\0}\0", "utf-8"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "a key occurs twice in one object: 'c'"),
        (b'{"a": NaN}', "NaN is no finite"),
        (b'{"a": -Infinity}', "-Infinity is no finite"),
        (b'{"a": 1e400}', "1e400 is no finite"),
        (b'{"a": ' + b"1" * 10**4 + b"}", "digits"),
        (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "more than 64 deep"),
        (b'{"a": ' + b"[" * 10**6, "recursion"),
        (b'{"a":' * 10**5, "recursion"),
    ],
)
def test_documents_that_are_refused(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^it must be a JSON object, .*{message}.*right file\?$"):
        parse_json(text, "it")


def test_documents_that_are_read(tmp_path: Path) -> None:
    content = {"a": [1, -2.5, "ä", None, True, {"b": {}}], "": 10**40}
    for _ in range(60):
        content = {"a": content}
    (tmp_path / "a.json").write_text(json.dumps(content))
    size = (tmp_path / "a.json").stat().st_size
    assert read_json(tmp_path / "a.json", size) == content
    with pytest.raises(
        ValueError, match=rf"a\.json must have at most {size - 1} bytes, got {size}"
    ):
        read_json(tmp_path / "a.json", size - 1)


# ---------------------------------------------------------------- arrays


DTYPES = st.one_of(
    arrays_of.boolean_dtypes(),
    arrays_of.integer_dtypes(endianness="?"),
    arrays_of.unsigned_integer_dtypes(endianness="?"),
    arrays_of.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    arrays_of.unicode_string_dtypes(endianness="?", max_len=3),
    arrays_of.byte_string_dtypes(max_len=3),
)
SHAPES = arrays_of.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), order=st.sampled_from("CF"), compressed=st.booleans())
def test_honest_arrays_come_back(data: st.DataObject, order: Any, compressed: bool) -> None:
    dtype, shape = data.draw(DTYPES), data.draw(SHAPES)
    values = np.asarray(data.draw(arrays_of.arrays(dtype, shape)), order=order)
    content = npz(compressed, a=values, b=X)
    found = [
        read(npy(values)),
        read_all(npy(values))[""],
        read_all(content)["a"],
        read_all(archive(a=npy(values).replace(b"\1\0v\0", b"\2\0v\0\0\0")))["a"],
    ]
    for array in found if dtype.itemsize else ():
        assert array.dtype == values.dtype
        assert array.flags.writeable
        assert array.flags.aligned
        np.testing.assert_array_equal(array, values)
    np.testing.assert_array_equal(read_all(content)["b"], X)
    with open_arrays(content, "it") as stored:
        assert stored["a"].shape == shape
        assert stored["a"].dtype == dtype
        assert stored["a"].nbytes == values.nbytes


FULL = np.dtype(np.uint8).str
LIES: dict[str, tuple[bytes, str]] = {
    "few": (header((10**6, 10**6)) + b"few", "must hold 1,000,000,000,000 bytes, got 3"),
    "many": (header((2,)) + b"many", "must hold 2 bytes, got 4"),
    "negative": (header((-1, -3)) + b"few", r"impossible shape \(-1, -3\)"),
    "huge": (header((3, 2**62, 4)), "impossible shape"),
    "empty but huge": (header((0, 2**62)), "impossible shape"),
    "axes": (header((1,) * 40) + b"1", "impossible shape"),
    "text for a shape": (header("text"), "whole array"),
    "a pickle": (header((1,), "|O") + bytes(8), "dtype object, a pickle, which is never read"),
    "fields": (header((1,), [("a", "<f8")]) + bytes(8), "real numbers or text"),
    "a field of objects": (header((1,), [("a", "|O")]) + bytes(8), "a pickle"),
    "an inner array": (header((1,), "(3,)<f8") + bytes(24), "real numbers or text"),
    "dates": (header((1,), "<M8[s]") + bytes(8), "real numbers or text"),
    "complex": (header((1,), "<c16") + bytes(16), "real numbers or text"),
    "nothing": (header((10**9,), "<U0"), "real numbers or text"),
    "no dtype": (header((1,), "nonsense") + bytes(8), "whole array"),
    "a damaged dtype": (header((1,), "(1,") + bytes(8), "whole array"),
    "booleans": (header((2,), "|b1") + b"\1\2", "neither 0 nor 1"),
    "text": (header((1,), "<U1") + b"\0\0\x11\0", "none of Unicode"),
    "swapped text": (header((1,), ">U1") + b"\0\x11\0\0", "none of Unicode"),
    "version": (b"\x93NUMPY\x09\x00" + bytes(100), "whole array"),
    "a long header": (b"\x93NUMPY\2\0\xff\xff\xff\xff" + bytes(10**5), "whole array"),
    "a deep header": (header((1,)).replace(b"(1,)", b"(" * 40 + b"1" + b")" * 40), "whole array"),
    "minuses": (b"\x93NUMPY\1\0\xb8\x0b" + b"-" * 2999 + b"1", "whole array"),
    "open quotes": (header((1,)).replace(b"'shape'", b"'''shap"), "whole array"),
    "no header": (b"\x93NUMPY\1", "whole array"),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("where", ["file", "bytes", "stored", "deflated"])
def test_headers_are_not_believed(tmp_path: Path, lie: str, where: str) -> None:
    content, message = LIES[lie]
    source: Path | bytes = content
    if where in ("stored", "deflated"):
        method = zipfile.ZIP_STORED if where == "stored" else zipfile.ZIP_DEFLATED
        source = archive(method, x=content)
    elif where == "file":
        source = tmp_path / "x.npy"
        source.write_bytes(content)
    with bounded(), pytest.raises(ValueError, match=rf"{message}.*: save it (again|with a plain)"):
        read_all(source)


def test_what_an_archive_unpacks_to_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two megabytes that unpack to two gigabytes, as they say: nothing is unpacked."""
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    zeros, head = bytes(2**24), header((2**31,))
    stream = pack.compress(head) + b"".join(pack.compress(zeros) for _ in range(8)) + pack.flush()
    size = 2**31 + len(head)  # the bound is looked at before anything of the stream
    name = b"x.npy"
    fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0, 0, len(stream), size, len(name), 0)
    central = struct.pack(
        "<HHHHHHIIIHHHHHII", 20, 20, 0, 8, 0, 0, 0, len(stream), size, 5, *(0,) * 6
    )
    start = len(fields) + 4 + len(name) + len(stream)
    bomb = b"PK\3\4" + fields + name + stream + b"PK\1\2" + central + name
    bomb += b"PK\5\6" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(central) + 9, start, 0)
    with (
        bounded(2 * len(bomb)),
        pytest.raises(
            ValueError, match=r"x\.npy must unpack to at most .*, got 2,147,483,648.*sav"
        ),
    ):
        read_all(bomb)
    # What is small is unpacked, however well it was packed; of what is large, it depends on that.
    monkeypatch.setattr(reading, "_FREELY_UNPACKED", 10**6)
    good = np.arange(300_000.0)
    np.testing.assert_array_equal(read_all(npz(True, x=good))["x"], good)
    assert read_all(npz(True, x=np.zeros(100_000)))["x"].size == 100_000
    with pytest.raises(ValueError, match="must unpack to at most 1,000,000 bytes, got 1,600,000"):
        read_all(npz(True, x=np.zeros(200_000)))
    assert read_all(npz(False, x=np.zeros(200_000)))["x"].size == 200_000


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_unpack_unbounded(method: int) -> None:
    bomb = archive(method, x=header((10**7,)) + bytes(10**7))
    with bounded(5e6), pytest.raises(ValueError, match=r"compression 1[24] of x\.npy"):
        read_all(bomb)


def test_archives_that_lie() -> None:
    content = npz(x=X, y=X[0])
    with pytest.raises(ValueError, match="two arrays have one name"):
        read_all(content.replace(b"y.npy", b"x.npy"))
    # A directory that takes all of a large file.
    large = bytearray(content[:-22]) + bytes(10**7) + content[-22:]
    struct.pack_into("<I", large, len(large) - 10, 10**7)
    with bounded(), pytest.raises(ValueError, match="directory takes 10,000,000 bytes"):
        read_all(bytes(large))
    for at, value in ((-10, 10**9), (-6, 2**32 - 2), (-6, 0)):  # size and place of the directory
        lie = bytearray(content)
        struct.pack_into("<I", lie, len(lie) + at, value)
        with contextlib.suppress(ValueError):
            read_all(bytes(lie))
    place = content.index(b"PK\1\2") + 42  # of the first member
    for value in (1, len(content) - 1, 2**31 - 1, 2**32 - 2):
        lie = bytearray(content)
        struct.pack_into("<I", lie, place, value)
        with pytest.raises(ValueError, match=r"it must|it: x\.npy must"):
            read_all(bytes(lie))


def test_an_array_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Honest, and larger than what is free: MemoryError before anything is read."""
    path = tmp_path / "x.npy"
    head = header((2**37,), "<f8")
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + 2**40)
    with bounded(), pytest.raises(MemoryError, match=r"x\.npy takes 1024\.0 GiB, .* are free: use"):
        read_array(path)
    with bounded(), pytest.raises(MemoryError, match=r"x\.npy takes 1024\.0 GiB, .* are free: use"):
        read_bytes(path, 2**41)
    asked: list[int] = []
    monkeypatch.setattr(reading, "available_memory", lambda: asked.append(1) or 2**24)
    assert read(npy(np.zeros(2**24, np.uint8))).size == 2**24
    assert not asked  # that takes longer than to read what is small
    with pytest.raises(MemoryError):
        read(npy(np.zeros(2**24 + 1, np.uint8)))
    monkeypatch.setattr(reading, "available_memory", lambda: None)
    assert read(npy(np.zeros(2**24 + 1, np.uint8))).size == 2**24 + 1


@pytest.mark.parametrize("end", ["", ".gz"])
def test_memory_is_taken_as_an_idx_file_is_read(tmp_path: Path, end: str) -> None:
    """A quarter of a gigabyte is promised, three bytes are there."""
    content = struct.pack(">HBB3I", 0, 8, 3, 2**14, 2**7, 2**7) + b"few"
    path = tmp_path / f"x-idx3-ubyte{end}"
    path.write_bytes(gzip.compress(content) if end else content)
    with (
        bounded(),
        pytest.raises(ValueError, match=r"must hold 268,435,456 bytes .* got 3: it was"),
    ):
        read_idx(path)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(npy(np.zeros(10**6)))
    with open_array(path) as stored:
        assert stored.shape == (10**6,)
        os.truncate(path, 5 * 10**6)
        with pytest.raises(ValueError, match="ends after 4,999,872 of 8,000,000 bytes"):
            stored.read()


# ---------------------------------------------------------------- damage


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Flip, cut, insert, remove, copy or overwrite bytes, mostly where formats keep numbers."""
    raw = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        size = len(raw)
        if not size:
            break
        near = int(rng.integers(min(size, 160)))
        at = int(rng.choice([near, size - 1 - near, int(rng.integers(size))]))
        length = int(rng.integers(1, 20))
        match rng.integers(8):
            case 0 | 1:
                raw[at] ^= 1 << int(rng.integers(8))
            case 2:
                raw[at:] = b""
            case 3:
                raw[at:at] = rng.bytes(length)
            case 4:
                raw[at : at + length] = b""
            case 5:
                other = int(rng.integers(size))
                raw[at : at + length] = raw[other : other + length]
            case 6:
                number = rng.choice([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**16 - 1])
                raw[at : at + 4] = struct.pack("<I", number)
            case _:
                raw[at : at + 1] = bytes(
                    rng.choice(list(b"0123456789-,.eE[]{}()'\"<>|O\\ \0\n"), 1)
                )
    return bytes(raw)


NASTY: list[Any] = [
    *(None, True, -1, 0, 1, 2, 0.5, -1e308, 2**31, 2**70, 10**400, "", "x" * 300, "../x", "\ud800"),
    *("nan", "inf", "float64", "ntk", [], {}, [[]], [1, 2], [2**62, 2**62], {"network": {}}),
]


def damaged_values(content: Any, rng: np.random.Generator) -> None:
    """Change one value somewhere in a document, or remove it, or move it elsewhere."""
    places: list[tuple[Any, Any]] = []
    level = [content]
    while level:
        inner = level.pop()
        for key in inner if isinstance(inner, dict) else range(len(inner)):
            places.append((inner, key))
            if isinstance(inner[key], dict | list):
                level.append(inner[key])
    holder, key = places[rng.integers(len(places))]
    match rng.integers(4):
        case 0:
            del holder[key]
        case 1:
            other, name = places[rng.integers(len(places))]
            holder[key] = json.loads(json.dumps(other[name]))
        case 2 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case _:
            holder[key] = NASTY[rng.integers(len(NASTY))]


def damaged_document(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage bytes of a document, or values."""
    if rng.integers(3) == 0:
        return damaged(content, rng)
    document = json.loads(content)
    for _ in range(rng.integers(1, 3)):
        damaged_values(document, rng)
    return json.dumps(document).encode()


def swapped(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage an archive, or swap, drop, double or damage members, with checksums that are right."""
    if rng.integers(3):
        return damaged(content, rng)
    with zipfile.ZipFile(io.BytesIO(content)) as held:
        members = {info.filename: held.read(info) for info in held.infolist()}
    one, two = rng.choice(list(members), 2)
    match rng.integers(4):
        case 0:
            members[one], members[two] = members[two], members[one]
        case 1:
            del members[one]
        case 2:
            members[one] = damaged(members[one], rng)
        case _:
            members[one.removesuffix(".npy")] = members[two]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, inner in members.items():
            made.writestr(name, inner)
    return file.getvalue()


def attack(
    content: bytes,
    damage: Callable[[bytes, np.random.Generator], bytes],
    reader: Callable[[bytes], object],
    rounds: int,
    seed: int,
    measured: int,
) -> None:
    """Read damaged content many times: nothing but ValueError, or a result.

    The memory of every so many rounds is measured, which takes three times as long.
    """
    refused = 0
    reader(content)
    for number in range(rounds):
        rng = np.random.default_rng([seed, number])
        bad = damage(content, rng)
        try:
            with bounded(measured=number % measured == 0):
                reader(bad)
        except ValueError:
            refused += 1
        except BaseException as error:
            error.add_note(f"seed {seed}, round {number}: {bad[:2000]!r}")
            raise
    assert refused > rounds / 5  # the damage is some


def put(path: Path, reader: Callable[[Path], object]) -> Callable[[bytes], object]:
    def write_and_read(content: bytes) -> object:
        path.write_bytes(content)
        return reader(path)

    return write_and_read


IMAGES = np.random.default_rng(0).integers(0, 256, (12, 5, 4, 3)).astype(np.uint8)
LABELS = np.arange(12) % 3
GREY = struct.pack(">HBB3I", 0, 8, 3, 12, 5, 4) + IMAGES[..., 0].tobytes()


def checkpoint(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    """An iteration that was kept, and what reads it."""
    rng = np.random.default_rng(0)
    k, y = np.cov(rng.normal(size=(20, 40))), rng.normal(size=(20, 3))
    call = partial(
        wl.solvers.solve_conjugate, k, y, 0.1, rank=4, checkpoint=folder, max_iterations=2
    )

    def go_on(_: Path) -> object:
        with np.errstate(all="ignore"):  # numbers that are absurd, with a checksum that is right
            return call()

    call()
    return (folder / "state.npz").read_bytes(), put(folder / "state.npz", go_on)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("iteration", lambda values: values * 0 - 1, "iteration has impossible values"),
        ("z", lambda values: values * np.nan, "z has impossible values"),
        ("s", lambda values: values * np.inf, "s has impossible values"),
        ("q", lambda values: values[1:], r"q has the shape \(19, 3\)"),
        ("delta", lambda values: values.astype("U9"), "must be a checkpoint|another system"),
    ],
)
def test_a_checkpoint_of_this_system_with_other_values(
    tmp_path: Path, name: str, change: Callable[[np.ndarray], np.ndarray], message: str
) -> None:
    """What cannot have been kept is refused, also where a stranger has sealed it."""
    content, go_on = checkpoint(tmp_path / "c")
    held = read_all(content)
    with np.errstate(all="ignore"):
        held[name] = change(held[name] + 1 if held[name].dtype.kind == "f" else held[name])
    with bounded(), pytest.raises(ValueError, match=r"it is damaged|has the shape"):
        go_on(npz(**held))
    del held["seal"]
    with bounded(), pytest.raises(ValueError, match=message):
        go_on(npz(seal=np.array(seal(held)), **held))


def store(folder: Path) -> tuple[bytes, Callable[[bytes], object]]:
    nets = [wl.cntk_gap(3), wl.cntk_vanilla(3)]
    wl.gram(nets, np.r_[X, X + 1][..., None], store=folder, kind=("ntk", "nngp"), tile=16)

    def open_and_count(_: Path) -> object:
        tiles = TileStore.open(open_objects(folder))
        tiles.finished()
        return read_manifest(tiles)

    return (folder / "zarr.json").read_bytes(), put(folder / "zarr.json", open_and_count)


def damaged_metadata(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage a document, and give it its digest, where it can be given one."""
    content = damaged_document(content, rng)
    with suppress(ValueError, TypeError, AttributeError, KeyError):
        made = json.loads(content)
        made["attributes"]["widelimit"]["digest"] = _digest(made)
        content = json.dumps(made).encode()
    return content


TARGETS: dict[str, Callable[[Path], tuple[bytes, Any, Callable[[bytes], object]]]] = {
    "npy": lambda _: (npy(X), damaged, read),
    "npy file": lambda path: (npy(X), damaged, put(path / "x.npy", read_array)),
    "npz": lambda _: (npz(x=X, y=X[0]), swapped, read_all),
    "npz deflated": lambda _: (npz(True, x=X, y=X[0]), swapped, read_all),
    "data set": lambda path: (
        npz(x_train=IMAGES, y_train=LABELS),
        swapped,
        put(path / "x.npz", load_npz),
    ),
    "idx": lambda path: (GREY, damaged, put(path / "x-idx3-ubyte", read_idx)),
    "idx.gz": lambda path: (gzip.compress(GREY), damaged, put(path / "x.gz", read_idx)),
    "network": lambda path: (
        wl.cntk_gap(5).to_json().encode(),
        damaged_document,
        put(path / "net.json", lambda path: read_network(str(path))),
    ),
    "checkpoint": lambda path: (
        *((made := checkpoint(path / "c"))[0], swapped),
        made[1],
    ),
    "store": lambda path: ((made := store(path / "k.zarr"))[0], damaged_metadata, made[1]),
}


def damaged_array(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change numbers, the dtype or the shape of an array, so that it is whole."""
    values = values.copy()
    match rng.integers(4):
        case 0 if values.size and values.dtype.kind == "f":
            values.flat[rng.integers(values.size)] = rng.choice([np.nan, np.inf, -1.0, 0.0, 1e308])
        case 1 if values.size and values.dtype.kind in "iu":
            number = np.array(rng.choice([-1, 0, 7, 99, 2**31, 2**63 - 1]))
            values.flat[rng.integers(values.size)] = number.astype(values.dtype)
        case 2:
            return values.astype(rng.choice(["f8", "f4", "i8", "u1", ">f8", "f2", "U3", "?"]))
        case _:
            shapes = [(0,), (1,), values[:-1].shape, (*values.shape, 1), (2, *values.shape)]
            return np.resize(values, shapes[rng.integers(len(shapes))])
    return values


def damage_model(folder: Path, rng: np.random.Generator) -> None:
    """Damage a document or an array, or write another one with a checksum that is right."""
    names = sorted(path.stem for path in folder.glob("*.npy"))
    one, two = (folder / f"{name}.npy" for name in rng.choice(names, 2))
    document = folder / "model.json"
    match rng.integers(6):
        case 0 | 1 | 2:
            content = damaged_document(document.read_bytes(), rng)
            with suppress(ValueError, TypeError, AttributeError):  # signed, where it can be
                made = json.loads(content)
                made["crc32c"] = _document_checksum(made)
                content = json.dumps(made).encode()
            document.write_bytes(content)
        case 3:
            one.write_bytes(damaged(one.read_bytes(), rng))
        case 4:
            content = one.read_bytes(), two.read_bytes()
            one.write_bytes(content[1])
            two.write_bytes(content[0])
        case _:
            with np.errstate(all="ignore"):
                values = damaged_array(np.load(one), rng)
            np.save(one, values)
            listed = json.loads(document.read_text())
            listed["arrays"][one.stem] = {
                "dtype": values.dtype.str,
                "shape": list(values.shape),
                "crc32c": _checksum(values),
            }
            listed["crc32c"] = _document_checksum(listed)
            document.write_text(json.dumps(listed))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    x = np.random.default_rng(0).random((12, 4, 4, 1))
    folder = tmp_path_factory.mktemp("models")
    networks: Any = [wl.ntk_dense(2), "cntk-vanilla-3"]
    made = [
        wl.NTKClassifier(networks, ridge="loo", standardise=True),
        wl.NTKClassifier("cntk-gap-3", time=0.5, kind="nngp"),
        wl.NTKRegressor(wl.ntk_dense(2), kind="nngp", ridge=1e-3),
        wl.NTKRegressor(ridge=0.1, time="loo"),
    ]
    for number, model in enumerate(made):
        labels = LABELS.astype(str) if number == 1 else LABELS
        save_model(model.fit(x, labels), folder / str(number))
    return sorted(folder.iterdir())


def attack_models(
    models: list[Path], tmp_path: Path, rounds: int, seed: int, measured: int
) -> None:
    def load(number: bytes) -> None:
        """Load a copy of a model, damaged but for the first."""
        copy = tmp_path / number.decode()
        shutil.copytree(models[int(number) % len(models)], copy)
        if int(number):
            damage_model(copy, np.random.default_rng([seed, int(number)]))
        try:
            load_model(copy)
        except ValueError as error:
            told = str(copy) in str(error)
            raise error if told else AssertionError(f"{error} does not name {copy}") from error
        finally:
            shutil.rmtree(copy)

    numbers = iter(range(1, rounds + 1))
    attack(b"0", lambda *_: str(next(numbers)).encode(), load, rounds, seed, measured)


def test_random_damage_of_models(models: list[Path], tmp_path: Path) -> None:
    attack_models(models, tmp_path, 200, seed=1, measured=8)


@pytest.mark.slow
def test_much_random_damage_of_models(models: list[Path], tmp_path: Path) -> None:
    attack_models(models, tmp_path, 1_000, seed=2, measured=8)


@pytest.mark.parametrize("target", TARGETS)
def test_random_damage(tmp_path: Path, target: str) -> None:
    content, damage, reader = TARGETS[target](tmp_path)
    attack(content, damage, reader, 200, seed=1, measured=8)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_much_random_damage(tmp_path: Path, target: str) -> None:
    content, damage, reader = TARGETS[target](tmp_path)
    attack(content, damage, reader, 1_000, seed=2, measured=8)
