"""The parts of a message's content as chat templates read them; both of OpenAI's APIs make them."""

IMAGE_PART = {"type": "image"}  # which one is told by its place among the images


def text_part(text: str) -> dict[str, str]:
    """A piece of text."""
    return {"type": "text", "text": text}


def joined(parts: list[dict[str, str]]) -> str | list[dict[str, str]]:
    """Parts that are all text as one string, which every template reads."""
    if IMAGE_PART in parts:
        return parts
    return "".join(part["text"] for part in parts)
