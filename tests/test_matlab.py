"""Files of MATLAB against SciPy, which writes and reads them on its own; and damaged ones."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.sparse
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from widelimit.data.matlab import read_matlab, scan_matlab

NUMBERS = [f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)] + ["f4", "f8"]


def saved(compressed: bool = False, **variables: Any) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, variables, do_compression=compressed)
    return file.getvalue()


def read(content: bytes) -> dict[str, np.ndarray]:
    return read_matlab(io.BytesIO(content))


@settings(deadline=None)
@given(
    dtype=st.sampled_from(NUMBERS),
    shape=st_numpy.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4),
    compressed=st.booleans(),
    data=st.data(),
)
def test_numbers(dtype: str, shape: Any, compressed: bool, data: Any) -> None:
    array = data.draw(st_numpy.arrays(dtype, shape))
    content = saved(compressed, x=array, y=np.arange(3))
    expected = scipy.io.loadmat(io.BytesIO(content))
    found = read(content)
    assert found.keys() == {"x", "y"}
    for name in found:
        assert found[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(found[name], expected[name], strict=True)


@pytest.mark.parametrize("compressed", [False, True])
def test_text_cells_and_structures(compressed: bool) -> None:
    cells = np.array(["cat", "dög", "", 3.5, np.eye(2)], dtype=object)
    structure = {"images": np.eye(3, dtype=np.uint8), "more": {"name": "x", "deep": [1, 2]}}
    found = read(
        saved(
            compressed,
            text="häuser",
            lines=["a", "bcd", "  e"],
            cells=cells,
            s=structure,
            yes=np.array([True, False]),
            nothing=np.zeros((0, 3)),
        )
    )
    assert found["text"].tolist() == ["häuser"]
    assert found["lines"].tolist() == ["a", "bcd", "  e"]
    first = found["cells"].ravel()
    assert [first[k].tolist() for k in range(3)] == [["cat"], ["dög"], []]
    assert first[3] == 3.5
    np.testing.assert_array_equal(first[4], np.eye(2))
    np.testing.assert_array_equal(found["s/images"], np.eye(3))
    assert found["s/more/name"].tolist() == ["x"]
    np.testing.assert_array_equal(found["s/more/deep"].ravel(), [1, 2])
    assert found["yes"].dtype == np.bool_
    assert found["nothing"].shape == (0, 3)


def test_what_is_there_is_told_before_it_is_read() -> None:
    content = saved(True, a=np.zeros((3, 4)), b="x", c=np.array(["y"], object), d={"e": 1}, f=[1j])
    content += saved(g=scipy.sparse.csc_matrix(np.eye(2)))[128:]
    found = scan_matlab(io.BytesIO(content))
    about = {name: (variable.kind, variable.shape) for name, variable in found.items()}
    assert about == {
        "a": ("float64", (3, 4)),
        "b": ("text", (1, 1)),
        "c": ("cells", (1, 1)),
        "d": ("a structure", (1, 1)),
        "f": ("complex", (1, 1)),
        "g": ("sparse", (2, 2)),
    }
    assert set(read(content)) == {"a", "b", "c", "d/e"}


def element(kind: int, content: bytes, order: str) -> bytes:
    return struct.pack(f"{order}II", kind, len(content)) + content + bytes(-len(content) % 8)


def by_hand(order: str = "<", **changes: bytes) -> bytes:
    """A file with one variable x, of two by three numbers, stored as bytes, as MATLAB does."""
    parts = {
        "flags": element(6, struct.pack(f"{order}II", 6, 0), order),
        "shape": element(5, struct.pack(f"{order}ii", 2, 3), order),
        "name": struct.pack(f"{order}I", 1 << 16 | 1) + b"x\0\0\0",
        "numbers": element(2, bytes(range(6)), order),
    } | changes
    head = b"by hand".ljust(124) + struct.pack(f"{order}H", 0x100)
    return head + (b"IM" if order == "<" else b"MI") + element(14, b"".join(parts.values()), order)


@pytest.mark.parametrize("order", "<>")
def test_orders_of_bytes(order: str) -> None:
    found = read(by_hand(order))["x"]
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, np.arange(6.0).reshape(2, 3, order="F"))
    np.testing.assert_array_equal(found, scipy.io.loadmat(io.BytesIO(by_hand(order)))["x"])


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "shorter than a header"),
        (bytes(200), "of version 4 or older, or none"),
        (b"x" * 200, "does not tell the order of bytes"),
        (by_hand()[:-8], "ends inside a variable"),
        (by_hand(shape=element(5, struct.pack("<ii", 2, 4), "<")), "has 6 numbers"),
        (by_hand(shape=element(5, struct.pack("<ii", -2, -3), "<")), "the shape"),
        (by_hand(shape=element(5, struct.pack("<i", 6), "<")), "the shape"),
        (by_hand(shape=element(9, struct.pack("<d", 6), "<")), "has no shape"),
        (by_hand(flags=element(6, struct.pack("<I", 6), "<")), "has no flags"),
        (by_hand(numbers=element(99, bytes(6), "<")), "numbers have the type 99"),
        (by_hand(numbers=element(9, bytes(6), "<")), "6 bytes are no numbers of 8"),
        (by_hand(numbers=struct.pack("<II", 2, 2**31)), "ends inside an element"),
        (by_hand(name=struct.pack("<I", 5 << 16 | 1) + b"xxxx"), "a small element has 5 bytes"),
    ],
)
def test_files_that_are_refused(content: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        read(content)


def test_a_small_file_never_unpacks_to_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("widelimit.data.matlab._FREELY_UNPACKED", 10_000)
    content = saved(True, x=np.zeros(1_000_000))
    with pytest.raises(ValueError, match="unpacks to more than"):
        read(content)
    # What says that it is longer than it is.
    packed = zlib.compress(element(14, by_hand()[136:], "<")[:-16])
    with pytest.raises(ValueError, match="a variable is cut off"):
        read(by_hand()[:128] + struct.pack("<II", 15, len(packed)) + packed)


def test_cells_in_cells_come_to_an_end() -> None:
    inner: Any = np.array([1.0])
    for _ in range(10):
        made = np.empty(2, object)
        made[:] = [inner, inner]
        inner = made
    with pytest.raises(ValueError, match="too many matrices in one another"):
        read(saved(x=inner))


BASES = [
    saved(compressed, x=np.arange(60, dtype=np.uint8).reshape(3, 4, 5), w=["cat", "dog"],
          c=np.array(["a", "b"], object), s={"a": 1, "b": {"c": np.eye(2)}})
    for compressed in (False, True)
]  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(st.data())
def test_damage_gives_arrays_or_a_value_error(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(BASES)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        read(bytes(content[: data.draw(st.integers(0, len(content)))]))
    except (ValueError, zlib.error, OverflowError):
        return
