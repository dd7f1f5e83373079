"""Random pictures, as images, files and data URLs."""

import base64
import io

import numpy as np
from PIL import Image


def random_picture(seed: int, width: int = 40, height: int = 30) -> Image.Image:
    """Random pixels: no two pictures look alike to a model."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def data_url(image: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(file_of(image)).decode()}"
