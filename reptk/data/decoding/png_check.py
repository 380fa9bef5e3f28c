"""PNG files before Pillow opens them: the checksums of their pixels, which it ignores, and texts that it refuses."""

import struct
import zlib
from collections.abc import Iterator

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

MAX_TEXT_BYTES = 1 << 20
"""Length of a text in a PNG file from which on Pillow refuses the image."""


def checked_png(content: bytes) -> bytes:
    """Return a PNG file without the texts that are too long for Pillow.

    Raises:
        ValueError: the checksum of the pixels is wrong. Pillow does not check it.
    """
    parts = [PNG_SIGNATURE]
    for kind, chunk in _png_chunks(content):
        stored_checksum = chunk[-4:]
        if kind == b"IDAT" and struct.pack(">I", zlib.crc32(chunk[4:-4])) != stored_checksum:
            raise ValueError("its pixels are damaged (CRC)")
        if not _is_long_text(kind, chunk):
            parts.append(chunk)
    checked_bytes = sum(len(part) for part in parts)
    if checked_bytes == len(content):
        return content
    return b"".join(parts)


def _is_long_text(kind: bytes, chunk: memoryview) -> bool:
    if kind not in (b"tEXt", b"zTXt", b"iTXt"):
        return False
    if len(chunk) > MAX_TEXT_BYTES:
        return True
    # keyword \0 method text, or keyword \0 is_compressed method language \0 keyword \0 text
    _, _, text = bytes(chunk[8:-4]).partition(b"\0")
    if kind == b"tEXt" or (kind == b"iTXt" and text[:1] != b"\1"):
        return False
    if kind == b"iTXt":
        _, _, text = text[2:].partition(b"\0")
        _, _, text = text.partition(b"\0")
    else:
        text = text[1:]
    decompressor = zlib.decompressobj()
    try:
        decompressor.decompress(text, MAX_TEXT_BYTES)
    except zlib.error:
        return True  # Pillow would refuse the image
    return bool(decompressor.unconsumed_tail)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the kind of every chunk, and the chunk with its length and checksum; the last one may be cut off."""
    view = memoryview(content)
    position = len(PNG_SIGNATURE)
    while position < len(content):
        length = int.from_bytes(view[position : position + 4], "big")
        # 4 bytes each of length, kind and checksum.
        chunk = view[position : position + length + 12]
        kind = bytes(chunk[4:8])
        yield kind, chunk
        if kind == b"IEND":
            return  # what follows is no part of the image
        position += length + 12
