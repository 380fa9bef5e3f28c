"""Raw photographs of cameras (CR2, NEF, ARW, DNG, ...), developed by LibRaw where the package rawpy is installed."""

import io
import struct
from importlib.util import find_spec

from PIL import Image

HAS_RAW = find_spec("rawpy") is not None
"""Whether raw photographs can be read."""

RAW_EXTENSIONS = frozenset(
    {".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".srw", ".x3f"}
)

MIN_HALF_SIDE_PX = 1024
"""A photograph whose shorter side has twice these pixels is developed at half its size, which is several times as fast."""

RAW_STARTS = (b"FUJIFILMCCD-RAW", b"FOVb", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
"""How files of Fujifilm, Sigma, Olympus and Panasonic begin."""

CANON_PLACES = ((8, b"CR"), (4, b"ftypcrx "))
"""What is where in CR2 and CR3."""

TIFF_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
TAG_MAKE = 271
TAG_SUB_IFDS = 330
TAG_DNG_VERSION = 50706
MAX_TIFF_TAGS = 500


def is_raw(content: bytes) -> bool:
    """Return whether a file is a raw photograph, by its content.

    Most are TIFF files whose first image is a small preview, which must not be taken for the photograph.
    """
    if content.startswith(RAW_STARTS):
        return True
    if any(content[start:].startswith(word) for start, word in CANON_PLACES if len(content) > start):
        return True
    tags = _first_tags(content)
    # Of cameras; scanners write their makers as well, and other programs the images within an image.
    return TAG_DNG_VERSION in tags or {TAG_MAKE, TAG_SUB_IFDS} <= tags


def open_raw(content: bytes, max_pixels: int) -> Image.Image:
    """Develop a raw photograph with the white balance of its camera, upright and in sRGB.

    Raises:
        ValueError: rawpy is not installed, or the photograph has too many pixels.
        Exception: of any type: it is damaged, or of a camera that LibRaw does not know.
    """
    if not HAS_RAW:
        raise ValueError("it is a raw photograph; to read these: pip install 'reptk[raw]'")
    import rawpy

    with rawpy.imread(io.BytesIO(content)) as raw:
        width, height = raw.sizes.width, raw.sizes.height
        if width * height > max_pixels:
            raise ValueError(f"{width:,} x {height:,} pixels are more than {max_pixels:,}, the limit (data.max_pixels)")
        half_size = min(width, height) // 2 >= MIN_HALF_SIDE_PX
        return Image.fromarray(raw.postprocess(use_camera_wb=True, half_size=half_size))


def _first_tags(content: bytes) -> set[int]:
    """Return the tags of the first image of a TIFF file; nothing for another file."""
    order = TIFF_BYTE_ORDERS.get(content[:4])
    if order is None:
        return set()
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        offsets = range(start + 2, start + 2 + 12 * min(count, MAX_TIFF_TAGS), 12)
        return {struct.unpack_from(f"{order}H", content, offset)[0] for offset in offsets}
    except struct.error:
        return set()
