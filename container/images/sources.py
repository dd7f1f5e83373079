"""Image sources of a request: data URLs, links, and TGI's Markdown in prompts."""

import base64
import binascii
import re
from dataclasses import dataclass

from container.errors import InvalidParameter, UnsupportedParameter

# TGI's form of an image in a prompt (router/src/validation.rs at v3.3.7). A link ends where another
# image begins, so that no text is read twice.
MARKDOWN_IMAGE = re.compile(r"!\[\]\(((?:data:image/|https?://)(?:(?!!\[\]\()[^)\s])+)\)")


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image URL of a request, and the field that contained it."""

    url: str
    field: str

    @property
    def is_data(self) -> bool:
        """Whether the URL contains the image itself."""
        return self.url[:5].lower() == "data:"

    def data(self) -> bytes:
        """Decode a data URL. Raises InvalidParameter or UnsupportedParameter."""
        head, comma, body = self.url.partition(",")
        media_type, *options = head[len("data:") :].lower().split(";")
        if not comma or "base64" not in options:
            raise InvalidParameter(
                f"`{self.field}` must be like 'data:image/png;base64,...'", field=self.field
            )
        if not media_type.startswith("image/"):
            raise UnsupportedParameter(
                f"`{self.field}`: {media_type[:40]!r} is not an image type", field=self.field
            )
        try:
            return base64.b64decode(body, validate=True)
        except binascii.Error as error:
            raise InvalidParameter(
                f"`{self.field}` is not valid base64: {error}", field=self.field
            ) from None


def take_markdown(text: str, placeholder: str, field: str) -> tuple[str, list[ImageSource]]:
    """Replace a text's Markdown images by a placeholder; return the text and the images."""
    sources = [ImageSource(match[1], field) for match in MARKDOWN_IMAGE.finditer(text)]
    return MARKDOWN_IMAGE.sub(lambda _: placeholder, text), sources
