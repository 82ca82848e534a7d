"""What is read in a file's header before any decoder sees it, field by field.

tests/test_robustness.py shows that whole files which ask for too much are refused.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ferfacenet import transforms
from ferfacenet.transforms import _in_scans, _tile_pixels, _tiles, read_image

# --- JPEG: does it come in several scans? --------------------------------------------------------


def segment(marker: int, body: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", 2 + len(body)) + body


def jpeg(*segments: bytes, scan_of: int = 3) -> bytes:
    """A picture of any components whose first scan has ``scan_of`` of them."""
    scan = segment(0xDA, bytes([scan_of]) + bytes(2 * scan_of + 3))
    return b"\xff\xd8" + b"".join(segments) + scan + b"\1\2\3\4\5\xff\xd9"


APP0 = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
#: 600 bytes that look like a scan of one component and a progressive frame wherever they are read.
DECOY = segment(0xEC, b"\xff\xda\0\x08\1\xff\xc2\0\x08\1" * 60)
FRAME = bytes(15)


@pytest.mark.parametrize("marker", [0xC0, 0xC1])
@pytest.mark.parametrize("before", [(), (APP0,), (APP0, DECOY), (DECOY, APP0, DECOY)])
@pytest.mark.parametrize("padding", [b"", b"\xff", b"\xff" * 5])
def test_one_scan_of_all_components(marker: int, before: tuple[bytes, ...], padding: bytes) -> None:
    data = jpeg(*(padding + part for part in before), padding + segment(marker, FRAME), padding)
    assert not _in_scans(data, 3)
    assert _in_scans(data, 4) and _in_scans(data, 1)  # others follow, or nothing fits


@pytest.mark.parametrize("components", [1, 3, 4])
def test_the_first_scan_has_to_hold_every_component(components: int) -> None:
    frame = segment(0xC0, FRAME)
    for scan_of in (1, 2, 3, 4):
        assert _in_scans(jpeg(APP0, frame, scan_of=scan_of), components) == (scan_of != components)


@pytest.mark.parametrize("marker", [0xC2, 0xC6, 0xCA, 0xCE])
@pytest.mark.parametrize("padding", [b"", b"\xff\xff\xff"])
def test_progressive_frames(marker: int, padding: bytes) -> None:
    assert _in_scans(jpeg(APP0, DECOY, padding + segment(marker, FRAME)), 3)


def test_segments_that_do_not_follow_each_other() -> None:
    assert _in_scans(jpeg(APP0, b"\0", segment(0xC0, FRAME)), 3)
    data = jpeg(APP0, segment(0xC0, FRAME))
    for end in range(2, data.index(b"\xff\xda") + 5):
        assert _in_scans(data[:end], 3)


# --- JPEG 2000: how many tiles? ------------------------------------------------------------------


def codestream(right: int, bottom: int, width: int, height: int, left: int, top: int) -> bytes:
    start = b"\xff\x4f\xff\x51" + struct.pack(">HH", 41, 0)
    # XOsiz and YOsiz, where the picture itself begins, play no part
    return start + struct.pack(">8I", right, bottom, 7, 9, width, height, left, top) + b"\0\3"


@pytest.mark.parametrize(
    ("sides", "tiles"),
    [
        ((100, 100, 100, 100, 0, 0), 1),
        ((101, 100, 100, 100, 0, 0), 2),
        ((100, 101, 100, 100, 0, 0), 2),
        ((250, 350, 100, 100, 0, 0), 12),
        ((250, 350, 10, 100, 0, 0), 100),
        ((250, 350, 100, 100, 50, 0), 8),
        ((250, 350, 100, 100, 0, 50), 9),
        ((250, 350, 0, 100, 0, 0), 1),
        ((250, 350, 100, 0, 0, 0), 1),
    ],
)
def test_tiles_of_a_jpeg2000(sides: tuple[int, int, int, int, int, int], tiles: int) -> None:
    assert _tiles(codestream(*sides)) == tiles
    # in the boxes of a JP2 file, wherever, and whatever byte is a line's end to a pattern
    assert _tiles(b"\0\0\0\x0cjP  \r\n\x87\n" + codestream(*sides)) == tiles


def test_the_most_tiles_of_several_pictures() -> None:
    few, many = codestream(10, 10, 5, 5, 0, 0), codestream(10, 100, 5, 5, 0, 0)
    assert _tiles(few + many + few) == 40
    assert _tiles(b"") == _tiles(many[:30]) == 1


# --- TIFF: how large is one tile? ----------------------------------------------------------------


def tiff(
    entries: list[tuple[int, int, int]],
    order: str,
    big: bool,
    count: int | None = None,
    at: int = 50,
) -> bytes:
    """The header, a directory of (tag, kind, value) at some offset, and the rest of an offset."""
    wide = order + ("Q" if big else "I")
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    start = magic + (struct.pack(order + "HH", 8, 0) if big else b"") + struct.pack(wide, at)
    number = struct.pack(order + ("Q" if big else "H"), len(entries) if count is None else count)
    table = [number]
    for tag, kind, value in entries:
        packed = struct.pack({3: order + "H", 4: order + "I"}.get(kind, wide), value)
        # what is behind a narrow value must not be read
        packed = packed.ljust(struct.calcsize(wide), b"\xee")
        table.append(struct.pack(order + "HH", tag, kind) + struct.pack(wide, 1) + packed)
    return start.ljust(at, b"\xaa") + b"".join(table) + struct.pack(wide, 0)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("kinds", [(3, 3), (4, 4), (3, 4), (4, 3), (16, 16)])
def test_sides_of_a_tile(order: str, big: bool, kinds: tuple[int, int]) -> None:
    entries = [(256, 4, 777), (322, kinds[0], 3000), (323, kinds[1], 500), (339, 3, 1)]
    for at in (50, 51, 4000):
        assert _tile_pixels(tiff(entries, order, big, at=at)) == 1_500_000
    assert _tile_pixels(tiff(entries[::-1], order, big)) == 1_500_000
    for missing in (1, 2):
        rest = entries[:missing] + entries[missing + 1 :]
        assert _tile_pixels(tiff(rest, order, big)) == 0


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_the_larger_of_two_sides_counts(order: str, big: bool) -> None:
    entries = [(322, 4, 5), (322, 3, 9), (322, 4, 7), (323, 3, 11), (323, 4, 20), (323, 3, 11)]
    assert _tile_pixels(tiff(entries, order, big)) == 180


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("kind", "side"), [(3, 65_535), (4, 2**32 - 1)])
def test_sides_have_no_sign(order: str, kind: int, side: int) -> None:
    for big in (False, True):
        assert _tile_pixels(tiff([(322, kind, side), (323, 3, 2)], order, big)) == 2 * side


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("big", [False, True])
def test_a_directory_that_is_cut_off_or_lies(order: str, big: bool) -> None:
    entries = [(322, 4, 300), (323, 4, 400), (339, 4, 1)]
    whole = tiff(entries, order, big)
    seen = {_tile_pixels(whole[:end]) for end in range(2, len(whole) + 1)}
    assert seen == {0, 120_000}
    assert _tile_pixels(tiff(entries, order, big, count=60_000)) == 120_000
    assert _tile_pixels(tiff(entries, order, big, count=1)) == 0  # those behind are no entries
    assert _tile_pixels(tiff(entries, order, big, count=2)) == 120_000
    assert _tile_pixels(tiff([], order, big)) == 0
    for far in (b"\x7f", b"\xff"):
        assert _tile_pixels(whole[: 8 if big else 4] + far * 8 + whole) == 0


def test_at_most_as_many_entries_as_a_tiff_can_have() -> None:
    filler = [(1, 4, 0)] * 2**16
    sides = [(322, 4, 30), (323, 4, 40)]
    assert _tile_pixels(tiff(filler[2:] + sides, "<", True)) == 1200
    assert _tile_pixels(tiff([*filler, *sides], "<", True)) == 0


# --- rubbish -------------------------------------------------------------------------------------

WHOLE = (
    *(tiff([(322, kind, 300), (323, 3, 4)], order, big)
      for kind in (3, 4, 16) for order in "<>" for big in (False, True)),
    codestream(250, 350, 100, 100, 0, 0),
    jpeg(APP0, segment(0xC0, FRAME)),
)  # fmt: skip


@given(
    whole=st.sampled_from(WHOLE),
    changes=st.lists(st.tuples(st.integers(0, 200), st.sampled_from(b"\0\1\x7f\xff")), max_size=9),
    end=st.integers(0, 200),
)
def test_changed_bytes_are_read_without_an_error(
    whole: bytes, changes: list[tuple[int, int]], end: int
) -> None:
    data = bytearray(whole)
    for at, value in changes:
        data[at % len(data)] = value
    for changed in (bytes(data), bytes(data[:end])):
        assert _tile_pixels(changed) >= 0
        assert isinstance(_tiles(changed), int)
        assert isinstance(_in_scans(changed, 3), bool)


# --- PIL's modes without a range of their own ----------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "values", "white"),
    [
        ("I", (0, 255), 255), ("I", (0, 256), 65535), ("I", (0, 65535), 65535),
        ("F", (0, 1), 1), ("F", (0, 1.5), 255), ("F", (0, 255), 255),
    ],
)  # fmt: skip
def test_white_of_modes_that_do_not_say(mode: str, values: tuple[float, ...], white: int) -> None:
    array = np.array([values], np.int32 if mode == "I" else np.float32)
    image: Any = Image.fromarray(array)
    assert image.mode == mode
    shown = read_image(image)[0, 0]
    assert shown.tolist() == pytest.approx([value / white for value in values], abs=1e-7)


@pytest.mark.parametrize(
    ("mode", "values", "said"),
    [
        ("I", (0, 65536), "from 0 to 65536 are outside 0 to 65535"),
        ("I", (-1, 9), "from -1 to 9 are outside 0 to 255"),
        ("F", (0, 255.5), "from 0 to 255.5 are outside 0 to 255"),
        ("F", (-0.5, 1), "from -0.5 to 1 are outside 0 to 1"),
    ],
)
def test_pixels_outside_of_it(mode: str, values: tuple[float, ...], said: str) -> None:
    array = np.array([values], np.int32 if mode == "I" else np.float32)
    with pytest.raises(ValueError, match=said):
        read_image(Image.fromarray(array))


# --- strips --------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 3, 1000, 2**19 + 1, 2**20, 2**20 + 1, 2**22])
@pytest.mark.parametrize("height", [1, 2, 3, 5])
def test_strips_cover_every_row_once_and_hold_a_million_pixels(height: int, width: int) -> None:
    strips = list(transforms._strips(height, width))
    assert [row for rows in strips for row in range(height)[rows]] == list(range(height))
    assert all(rows.stop <= height for rows in strips)
    for rows in strips[:-1]:
        rows_held = rows.stop - rows.start
        assert rows_held == 1 or rows_held * width <= 2**20 < (rows_held + 1) * width
    assert len(strips) == 1 or height * width > 2**20
