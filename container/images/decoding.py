"""Decodes a file's bytes to a checked RGB image. Raises InvalidParameter with the limit."""

import io
import re
import warnings
from dataclasses import dataclass

from PIL import Image, ImageOps

from container.errors import InvalidParameter, PayloadTooLarge

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # those of OpenAI's API
# Processors that scale the shorter side to a fixed length would make the longer one gigabytes long.
MAX_ASPECT_RATIO = 200
# A JPEG's scans are decoded one after another, each over all pixels. Real files have about ten.
MAX_SCANS = 100
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9
# Markers of segments, behind which their length is, and the end. Decoders skip all others.
MARKER = re.compile(rb"\xff([\xc0-\xcf\xd9-\xfe])")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Most images in a request; most bytes and most pixels (width x height) of each."""

    count: int = 8
    num_bytes: int = 20_000_000
    pixels: int = 2**24


def decode(data: bytes, limits: ImageLimits, field: str) -> Image.Image:
    """Decode the first frame of a file, rotated upright. Errors name `field`."""
    if len(data) > limits.num_bytes:
        raise PayloadTooLarge(
            f"`{field}`: the image has {len(data)} bytes; the limit is {limits.num_bytes} "
            "(MAX_IMAGE_FETCH_SIZE)",
            field=field,
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # the size is checked here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        _check_size(image, limits, field)  # the header has the size; no pixel is decoded yet
        # Pillow calls a JPEG that lists further pictures behind it MPO.
        if image.format in ("JPEG", "MPO") and _has_many_scans(data):
            raise InvalidParameter(
                f"`{field}`: the JPEG has more than {MAX_SCANS} scans; save it again", field=field
            )
        return ImageOps.exif_transpose(image).convert("RGB")
    except InvalidParameter:
        raise
    except Image.DecompressionBombError:
        raise _too_large("far too many", limits, field) from None
    except Exception as error:  # for a broken file, Pillow can raise anything
        raise InvalidParameter(
            f"`{field}`: no image can be read from it ({', '.join(FORMATS)} are supported): "
            f"{_pillow_message(error)}",
            field=field,
        ) from None


def _has_many_scans(data: bytes) -> bool:
    """Whether a JPEG has more than MAX_SCANS. Data behind its end, such as a video, is ignored."""
    position = num_scans = 0
    while (match := MARKER.search(data, position)) is not None:
        position, marker = match.end(), match[1][0]
        if marker == END_OF_IMAGE:
            return False
        position += int.from_bytes(data[position : position + 2])  # there may be a thumbnail in it
        num_scans += marker == START_OF_SCAN
        if num_scans > MAX_SCANS:
            return True
    return False


def _check_size(image: Image.Image, limits: ImageLimits, field: str) -> None:
    if image.width * image.height > limits.pixels:
        raise _too_large(f"{image.width} x {image.height}", limits, field)
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise InvalidParameter(
            f"`{field}`: the image has {image.width} x {image.height} pixels; its longer side may "
            f"have at most {MAX_ASPECT_RATIO} times the pixels of its shorter side",
            field=field,
        )


def _too_large(size: str, limits: ImageLimits, field: str) -> InvalidParameter:
    return InvalidParameter(
        f"`{field}`: the image has {size} pixels; the limit is {limits.pixels} (MAX_IMAGE_PIXELS)",
        field=field,
    )


def _pillow_message(error: Exception) -> str:
    # Without a file name, Pillow's message shows the address of the BytesIO object.
    return type(error).__name__ if "BytesIO" in str(error) else f"{error}"[:200]
