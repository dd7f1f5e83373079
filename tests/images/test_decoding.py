"""Decoding under limits, where images are in a request, and what templates write for them."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from container.errors import InvalidParameter, PayloadTooLarge
from container.images.decoding import FORMATS, ImageLimits, decode
from container.images.sources import ImageSource, take_markdown
from container.text.tokenizer import Tokenizer
from tests.support.pictures import data_url, file_of, random_picture
from tests.support.servers import DEMO_MODEL

LIMITS = ImageLimits(num_bytes=50_000, pixels=10_000)


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read(kind: str) -> None:
    image = decode(file_of(random_picture(1), kind), LIMITS, "f")
    assert (image.size, image.mode) == ((40, 30), "RGB")
    if kind == "PNG":
        assert np.array_equal(np.asarray(image), np.asarray(random_picture(1)))


def test_a_bomb_is_refused_by_its_header() -> None:
    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    for side in (101, 20_000, 100_000):  # more than Pillow itself allows, at last
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
        body = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
        with pytest.raises(InvalidParameter, match="MAX_IMAGE_PIXELS") as caught:
            decode(b"\x89PNG\r\n\x1a\n" + header + body, LIMITS, "f")
        assert caught.value.field == "f"


def test_too_many_bytes_are_refused() -> None:
    with pytest.raises(PayloadTooLarge, match="50001 bytes"):
        decode(b"x" * 50_001, LIMITS, "f")


def test_a_picture_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    buffer = io.BytesIO()
    random_picture(1).save(buffer, "PNG", exif=exif)
    assert decode(buffer.getvalue(), LIMITS, "f").size == (30, 40)


def test_a_data_url_gives_its_bytes() -> None:
    assert ImageSource(data_url(random_picture(2)), "f").data() == file_of(random_picture(2))


def test_markdown_images_are_taken_out_in_order() -> None:
    text = "a ![](https://x.org/1.png) b ![](data:image/png;base64,AA==) c ![x](y) ![](file.png)"
    left, found = take_markdown(text, "<image>", "inputs")
    assert left == "a <image> b <image> c ![x](y) ![](file.png)"
    assert [one.url for one in found] == ["https://x.org/1.png", "data:image/png;base64,AA=="]


@pytest.mark.parametrize(
    ("written", "strings", "parts"),
    [
        ("{{ m.content }}", True, False),
        ("{% for p in m.content %}{{ p.text }}{% endfor %}", False, True),
        ("{% if m.content is string %}{{ m.content }}{% else %}{{ m.content[0].text }}{% endif %}",
         True, True),
    ],
)  # fmt: skip
def test_contents_that_a_template_reads(
    tmp_path: Path, written: str, strings: bool, parts: bool
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}" + written + "{% endfor %}")
    tokenizer = Tokenizer.from_folder(DEMO_MODEL, template_path=str(template))
    assert (tokenizer.takes_strings, tokenizer.takes_parts) == (strings, parts)


def _progressive(num_scans: int) -> bytes:
    """A JPEG whose first scan comes several times, without data."""
    buffer = io.BytesIO()
    Image.new("L", (90, 90)).save(buffer, "JPEG", progressive=True)
    header = buffer.getvalue().partition(b"\xff\xda")[0]
    return header + b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00" * num_scans + b"\xff\xd9"


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded() -> None:
    assert decode(_progressive(100), LIMITS, "f").size == (90, 90)
    with pytest.raises(InvalidParameter, match="more than 100 scans"):
        decode(_progressive(101), LIMITS, "f")


def test_scans_of_a_jpeg_with_a_second_picture_are_counted() -> None:
    buffer = io.BytesIO()
    pictures = [random_picture(1), random_picture(2)]
    pictures[0].save(buffer, "MPO", save_all=True, append_images=pictures[1:], progressive=True)
    data = buffer.getvalue()
    assert decode(data, LIMITS, "f").size == (40, 30)
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x00\x00\x00"
    first, marker, rest = data.partition(b"\xff\xda")
    for between in (b"", b"\xff\xd0", b"\xff\x02\xff\xff", b"\xff\xff"):
        with pytest.raises(InvalidParameter, match="more than 100 scans"):
            decode(first + (scan + between) * 101 + marker + rest, LIMITS, "f")


def test_bytes_like_scans_outside_of_the_picture_are_none() -> None:
    data = file_of(random_picture(1), "JPEG")
    many = b"\xff\xda" * 5000
    thumbnail = b"\xff\xe5" + (len(many) + 2).to_bytes(2) + many
    for changed in (data + many, data[:2] + thumbnail + data[2:]):
        assert decode(changed, LIMITS, "f").size == (40, 30)


@pytest.mark.parametrize("link", ["http://x.org/?f[a]=1.png", "http://[::1]/x", "http://a!b[]/c"])
def test_a_link_may_have_brackets(link: str) -> None:
    text, sources = take_markdown(f"a ![]({link}) ![](http://![]({link}", "<image>", "inputs")
    assert text == f"a <image> ![](http://![]({link}"
    assert [source.url for source in sources] == [link]


@pytest.mark.parametrize(
    "opening", ["![](data:image/", "![](https://a", "![](http://", "![](", "!["]
)
def test_many_openings_without_an_end_are_no_images(opening: str) -> None:
    text = opening * 100_000
    assert take_markdown(text, "<image>", "inputs") == (text, [])
    found, sources = take_markdown(text + "![](https://a.example/b.png)", "<image>", "inputs")
    assert found == text + "<image>"
    assert [source.url for source in sources] == ["https://a.example/b.png"]
