"""Images in the prompts of several families of vision-language models."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from container.images.reader import ImageReader
from container.text.tokenizer import Tokenizer
from tests.support.models import tiny_vision
from tests.support.servers import ROOT


@pytest.mark.parametrize("family", tiny_vision.FAMILIES)
def test_image_placeholders_of_templates(family: str, tmp_path: Path) -> None:
    tiny_vision.save(family, tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path)
    placeholder = tiny_vision.PLACEHOLDERS[family]
    assert tokenizer.image_placeholder(tiny_vision.MARKS[family][0]) == placeholder


def test_prompts_are_read_without_torch_as_with_it(tmp_path: Path) -> None:
    folders = [tmp_path / family for family in tiny_vision.FAMILIES]
    for folder in folders:
        tiny_vision.save(folder.name, folder)
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from container.images.reader import ImageReader\n"
        "from container.text.tokenizer import Tokenizer\n"
        "for folder in sys.argv[1:]:\n"
        "    reader = ImageReader.from_folder(folder, Tokenizer.from_folder(folder))\n"
        "    print('hash', hash_of(reader.read_probe()))\n"
    )
    helper = "import hashlib\ndef hash_of(r): return hashlib.sha256(repr(r).encode()).hexdigest()\n"
    done = subprocess.run(
        [sys.executable, "-c", helper + code, *map(str, folders)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    hashes = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("hash ")]
    for folder, without_torch in zip(folders, hashes, strict=True):
        here = ImageReader.from_folder(folder, Tokenizer.from_folder(folder)).read_probe()
        assert without_torch == hashlib.sha256(repr(here).encode()).hexdigest(), folder.name
