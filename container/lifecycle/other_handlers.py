"""Recognise the handler files of other serving images, which this server does not run."""

from collections.abc import Iterator
from pathlib import Path

MAX_BYTES = 2**20
# A file's name, and whose it is if the text holds one of these words.
HANDLERS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    (
        "model.py",
        "a handler of LMI (DJL Serving)",
        ("djl_python", "def handle(", "@input_formatter", "@output_formatter", "@init_handler"),
    ),
    (
        "model.py",
        "a custom handler of the vLLM and SGLang images",
        ("custom_sagemaker_", "model_hosting_container_standards", "register_invocation_handler"),
    ),
    ("handler.py", "a handler of Hugging Face Inference Endpoints", ("class EndpointHandler",)),
    ("handler_service.py", "a handler of Multi Model Server", ("HandlerService",)),
    ("serving.properties", "a configuration of LMI (DJL Serving)", ("engine", "option.")),
)


def other_handlers(model: Path) -> Iterator[tuple[Path, str]]:
    """Yield handler files of other images in a model's folder and its `code/`, and whose."""
    for folder in (model, model / "code"):
        for name, owner, words in HANDLERS:
            path = folder / name
            text = _text(path)
            if any(word in text for word in words):
                yield path, owner


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES).decode(errors="replace")
    except OSError:
        return ""
