"""Whether a video or audio file was cut off: its container says how long it is, and less is there.

Decoders go on to where such a file ends, without an error, and give less than it had. What was never closed, such as a
stream that was written to a pipe, declares no length, or an impossible one, and passes, unless it ends in the middle
of a packet.
"""

from __future__ import annotations

import functools
import io
import math
import mmap
import struct
from collections.abc import Callable, Iterator
from typing import Literal, TypeAlias

import numpy as np

# The content of a file, which need not be read as a whole.
Content: TypeAlias = "bytes | mmap.mmap"


class EndsEarlyError(ValueError):
    """A file that ends before it says so."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"it ends early: {reason}")


def check_end(content: Content) -> None:
    """Raises an `EndsEarlyError` if the container declares more bytes than `content` has.

    Knows WAV, AVI and other RIFF files, W64, AIFF, AU, CAF, Matroska and WebM, Ogg, MP3, MPEG transport and program
    streams, ASF (WMA, WMV) and GIF. The indices of MP4 and MOV files, and the counts of FLAC, are compared where they
    are decoded. Other files pass.
    """
    for magic, check in _CHECKS:
        if content[: len(magic)] == magic:
            return check(content)
    start = _after_id3(content)
    if _audio_frame(content[start : start + 4]) is not None:
        return _check_mp3(content)
    return _check_transport_stream(content)


def looks_whole(content: Content) -> bool:
    """Whether this is an image, a sound, a video or an array of numpy that does not end early.

    No more than its ends, and the lengths that it declares, are looked at. What looks whole may still be damaged, and
    what does not may still be read: only reading it tells.
    """
    try:
        check_end(content)
        for magic, end in _IMAGE_ENDS:
            if content[: len(magic)] == magic:
                return content[len(content) - len(end) :] == end
        if content[:6] == b"\x93NUMPY":
            return _array_end(content) <= len(content)
        if content[:4] == b"PK\3\4":  # an .npz file
            return 0 <= content.rfind(b"PK\5\6") <= len(content) - 22
        if content[:2] == b"BM":
            return struct.unpack_from("<I", content, 2)[0] <= len(content)
        if content[4:8] == b"ftyp":
            return _ends_with_a_box(content)
        return (
            content[:4] in _OTHERS or any(content[: len(magic)] == magic for magic, _ in _CHECKS) or _is_mpeg(content)
        )
    except Exception:  # whatever it is that these bytes are no such file for
        return False


def _array_end(content: Content) -> int:
    """The place where an array of numpy ends."""
    head = io.BytesIO(content[: 1 << 16])
    version = np.lib.format.read_magic(head)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(head)
    return head.tell() + math.prod(shape) * dtype.itemsize


def _ends_with_a_box(content: Content) -> bool:
    """Whether the boxes of an MP4, MOV, HEIF or AVIF file end where it does, and the one with its index is there."""
    at, is_indexed = 0, False
    while at < len(content):
        size, name = struct.unpack_from(">I4s", content, at)
        size = struct.unpack_from(">Q", content, at + 8)[0] if size == 1 else size
        is_indexed |= name in (b"moov", b"meta")
        if size < 8:
            return False
        at += size
    return at == len(content) and is_indexed


def _is_mpeg(content: Content) -> bool:
    """Whether it is an MPEG stream of sounds, or a transport stream."""
    start = _after_id3(content)
    return _audio_frame(content[start : start + 4]) is not None or _transport_packets(content) is not None


def declared_flac_samples(content: Content) -> int | None:
    """The number of samples of a channel in the header of a FLAC file; None if it does not say, or is another file."""
    start = _after_id3(content)
    if content[start : start + 4] != b"fLaC" or len(content) < start + 26:
        return None
    return int.from_bytes(content[start + 21 : start + 26], "big") & (1 << 36) - 1 or None


def _demand(content: Content, end: int, what: str) -> None:
    if end > len(content):
        raise EndsEarlyError(f"{what} lasts to byte {end}, the file has {len(content)}")


# --- RIFF and its relatives ------------------------------------------------------------------------------------------

# What is written where a length is not known yet: all bits, or nearly 2 GB, which programs round down to whole blocks.
_UNKNOWN = 0x7FFF0000


def _check_riff(content: Content) -> None:
    order: Literal["big", "little"] = "big" if content[:4] == b"RIFX" else "little"
    size = int.from_bytes(content[4:8], order)
    if content[8:12] != b"WAVE":
        # Frames lie in nested lists; the outermost says it all. A further RIFF may follow in AVI files.
        at = 0
        while content[at : at + 4] == b"RIFF" and 0 < size < _UNKNOWN:
            _demand(content, at + 8 + size, "the RIFF chunk")
            at += 8 + size + size % 2
            size = int.from_bytes(content[at + 4 : at + 8], "little")
        return
    long_size = None
    for name, start, length in _chunks(content, 12, 8, lambda head: int.from_bytes(head[4:8], order)):
        if name == b"ds64":  # of RF64, for what has no room in 32 bits
            long_size = int.from_bytes(content[start + 8 : start + 16], "little")
        elif name == b"data":
            if length == 0xFFFFFFFF and long_size:
                length = long_size
            elif not 0 < length < _UNKNOWN:
                return
            # Some programs write the size of the file into all places, headers included.
            _demand(content, start + length - (start if length in (size, size + 8) else 0), "the samples' chunk")
            return


def _check_w64(content: Content) -> None:
    for name, start, length in _chunks(content, 40, 24, lambda head: int.from_bytes(head[16:24], "little") - 24, 8):
        if name == b"data" and 0 < length < 1 << 62:
            _demand(content, start + length, "the samples' chunk")


def _check_aiff(content: Content) -> None:
    for name, start, length in _chunks(content, 12, 8, lambda head: int.from_bytes(head[4:8], "big")):
        if name == b"SSND" and 0 < length < _UNKNOWN:
            _demand(content, start + length, "the samples' chunk")


def _check_caf(content: Content) -> None:
    for name, start, length in _chunks(content, 8, 12, lambda head: int.from_bytes(head[4:12], "big", signed=True), 1):
        if name == b"data" and length > 0:
            _demand(content, start + length, "the samples' chunk")


def _check_au(content: Content) -> None:
    start, length = struct.unpack_from(">II", content[:12].ljust(12, b"\0"), 4)
    if 0 < length < _UNKNOWN:
        _demand(content, start + length, "the sound")


def _chunks(
    content: Content, at: int, head: int, length_of: Callable[[bytes], int], align: int = 2
) -> Iterator[tuple[bytes, int, int]]:
    """The name of each chunk, where its body begins, and how long that says to be."""
    while at + head <= len(content):
        length = length_of(content[at : at + head])
        yield content[at : at + 4], at + head, length
        if length < 0:
            return
        at += head + length + -length % align


# --- Matroska and WebM -----------------------------------------------------------------------------------------------

_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675


def _check_matroska(content: Content) -> None:
    at = 0
    while (element := _element(content, at)) is not None:
        name, start, length = element
        if length is None:
            if name not in (_SEGMENT, _CLUSTER):
                return
            at = start  # into what has no declared length, as live streams are written
        else:
            _demand(content, start + length, "an element")
            at = start + length


def _element(content: Content, at: int) -> tuple[int, int, int | None] | None:
    """The name of an EBML element, where its body begins, and its length, None if that is open; None for none."""
    name_width = _width(content, at)
    length_width = _width(content, at + name_width)
    middle = at + name_width
    start = middle + length_width
    if not name_width or not length_width or start > len(content):
        return None
    is_open = (1 << 7 * length_width) - 1
    length = int.from_bytes(content[middle:start], "big") & is_open
    return int.from_bytes(content[at:middle], "big"), start, None if length == is_open else length


def _width(content: Content, at: int) -> int:
    """The number of bytes of an EBML number, which its first byte says; 0 for none."""
    return 9 - content[at].bit_length() if at < len(content) and content[at] else 0


# --- Ogg -------------------------------------------------------------------------------------------------------------


def _check_ogg(content: Content) -> None:
    at = 0
    while content[at : at + 4] == b"OggS":
        count = content[at + 26] if at + 26 < len(content) else 0
        _demand(content, at + 27 + count, "a page")
        at += 27 + count + sum(content[at + 27 : at + 27 + count])
        _demand(content, at, "a page")


# --- MP3 -------------------------------------------------------------------------------------------------------------

# Kilobits a second by the index in a frame's header: of MPEG 1, layers 1, 2 and 3; of MPEG 2, layer 1, and 2 and 3.
_BITRATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = (44100, 48000, 32000)


def _after_id3(content: Content) -> int:
    """The place where a tag in front of a file ends, and the zeros behind it."""
    at = 0
    while content[at : at + 3] == b"ID3" and len(content) >= at + 10:
        size = 0
        for byte in content[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        at += 10 + size + (10 if content[at + 5] & 0x10 else 0)
        head = content[at : at + (1 << 16)]
        at += len(head) - len(head.lstrip(b"\0"))
    return at


@functools.lru_cache(maxsize=4096)
def _audio_frame(header: bytes) -> tuple[int, int] | None:
    """The length of an MPEG audio frame, and where in it a Xing header would be; None if these 4 bytes begin none."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE0 != 0xE0:
        return None
    version, layer = header[1] >> 3 & 3, 4 - (header[1] >> 1 & 3)
    bitrate, rate, padding = header[2] >> 4, header[2] >> 2 & 3, header[2] >> 1 & 1
    # Reserved values, and frames whose length is not in their header.
    if version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    bits = 1000 * _BITRATES[1 if is_first else 2, layer][bitrate - 1]
    hertz = _RATES[rate] // {3: 1, 2: 2, 0: 4}[version]
    is_mono = header[3] >> 6 == 3
    side = ((17 if is_mono else 32) if is_first else (9 if is_mono else 17)) + (0 if header[1] & 1 else 2)
    if layer == 1:
        return (12 * bits // hertz + padding) * 4, 4 + side
    return (144 if is_first or layer == 2 else 72) * bits // hertz + padding, 4 + side


def _check_mp3(content: Content) -> None:
    at = _after_id3(content)
    frame = _audio_frame(content[at : at + 4])
    assert frame is not None
    place = at + frame[1]
    if content[place : place + 4] in (b"Xing", b"Info"):
        flags = int.from_bytes(content[place + 4 : place + 8], "big")
        if flags & 2:
            size_at = place + 8 + (4 if flags & 1 else 0)
            _demand(content, at + int.from_bytes(content[size_at : size_at + 4], "big"), "the sound")
            return
    # Behind the last frame there may be tags, or nothing.
    while frame is not None:
        at += frame[0]
        frame = _audio_frame(content[at : at + 4])
    _demand(content, at, "a frame")


# --- MPEG streams ----------------------------------------------------------------------------------------------------

# How many packets from the end are looked at: the last ones of all streams are among them.
_LAST_PACKETS = 8192


def _transport_packets(content: Content) -> tuple[int, int] | None:
    """The length of a transport stream's packets, and where in them the standard's own begin."""
    # 192: a time stamp before each packet (M2TS); 204: check bytes behind it.
    for size, first in ((188, 0), (192, 4), (204, 0)):
        if len(content) > first + 3 * size and all(content[first + n * size] == 0x47 for n in range(4)):
            return size, first
    return None


def _check_transport_stream(content: Content) -> None:
    packets = _transport_packets(content)
    if packets is None:
        return
    size, first = packets
    count, rest = divmod(len(content), size)
    if rest:
        _demand(content, (count + 1) * size, "a packet")
    found: dict[int, int] = {}  # bytes behind the last beginning of a unit, by stream
    done: set[int] = set()
    for number in range(count - 1, max(-1, count - 1 - _LAST_PACKETS), -1):
        at = number * size + first
        packet = content[at : at + 188]
        stream = (packet[1] & 0x1F) << 8 | packet[2]
        if packet[0] != 0x47 or not packet[3] & 0x10 or stream in done:
            continue
        start = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
        payload = packet[start:]
        found[stream] = found.get(stream, 0) + len(payload)
        if packet[1] & 0x40:
            done.add(stream)
            # 0 is for video of any length.
            length = int.from_bytes(payload[4:6], "big")
            if payload[:3] == b"\0\0\1" and length and found[stream] < 6 + length:
                raise EndsEarlyError("the last packet of a stream is not complete")


def _check_program_stream(content: Content) -> None:
    at = 0
    while content[at : at + 3] == b"\0\0\1" and at + 6 <= len(content):
        kind = content[at + 3]
        if kind == 0xB9:
            return
        if kind == 0xBA:
            is_second = content[at + 4] >> 6 == 1
            stuffing = content[at + 13] & 7 if is_second and at + 13 < len(content) else 0
            at += 14 + stuffing if is_second else 12
        else:
            at += 6 + int.from_bytes(content[at + 4 : at + 6], "big")
        _demand(content, at, "a packet")


# --- Others ----------------------------------------------------------------------------------------------------------

_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def _check_asf(content: Content) -> None:
    at = content.find(_ASF_FILE_PROPERTIES, 0, 1 << 16)
    if at >= 0 and len(content) >= at + 92:
        (size,) = struct.unpack_from("<Q", content, at + 40)
        is_broadcast = content[at + 88] & 1  # then the sizes mean nothing
        if not is_broadcast:
            _demand(content, size, "the file")


def _check_gif(content: Content) -> None:
    if len(content) < 13:
        return
    at = 13 + _colors(content[10])
    while at < len(content):
        kind = content[at]
        if kind == 0x2C:  # an image
            _demand(content, at + 10, "an image")
            at += 11 + _colors(content[at + 9])
        elif kind == 0x21:  # an extension
            at += 2
        else:  # the end, or what is behind it
            return
        size = 1
        while size and at < len(content):  # thousands of turns
            size = content[at]
            at += 1 + size
        _demand(content, at + (1 if size else 0), "a block")


def _colors(flags: int) -> int:
    """The bytes of a table of colours."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


# By the first bytes of a file.
_CHECKS: tuple[tuple[bytes, Callable[[Content], None]], ...] = (
    (b"RIFF", _check_riff),
    (b"RIFX", _check_riff),
    (b"RF64", _check_riff),
    (b"BW64", _check_riff),
    (b"riff", _check_w64),
    (b"FORM", _check_aiff),
    (b"caff", _check_caf),
    (b".snd", _check_au),
    (b"\x1a\x45\xdf\xa3", _check_matroska),
    (b"OggS", _check_ogg),
    (b"GIF8", _check_gif),
    (b"\x00\x00\x01\xba", _check_program_stream),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", _check_asf),
)

# Images by their first bytes, and how they end.
_IMAGE_ENDS = ((b"\xff\xd8\xff", b"\xff\xd9"), (b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"), (b"GIF8", b";"))
# FLAC and TIFF, of which only decoding tells.
_OTHERS = (b"fLaC", b"II*\0", b"MM\0*")
