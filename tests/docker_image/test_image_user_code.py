"""User code in the image: a model's `code/` with requirements, without network or writable root."""

import shutil
from pathlib import Path

from tests.support.image.containers import container
from tests.support.models.user_code import folder_with, write_wheel
from tests.support.servers import DEMO_MODEL, ROOT

SHOUT = """
import own_shout
def model_fn(model_dir): return own_shout.LETTER_CASE
def predict_fn(data, model): return getattr(data["inputs"], model)()
"""


def test_code_beside_the_model_is_served_with_its_requirements(tmp_path: Path) -> None:
    folder = folder_with(tmp_path / "model", SHOUT)
    (folder / "code" / "requirements.txt").write_text("own-shout==1.0\n")
    write_wheel(folder / "code" / "wheels", "own_shout", "LETTER_CASE = 'upper'\n")
    with container(model=folder) as running:
        assert running.ask("/invocations", {"inputs": "hello"}).json() == "HELLO"
        assert running.stop() == 0


def test_the_example_of_user_code_streams_from_the_engine(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(DEMO_MODEL, folder)
    shutil.copytree(ROOT / "code", folder / "code")
    with container(model=folder) as running:
        answer = running.ask("/invocations", {"question": "What is deep learning?"})
        assert answer.status == 200
        assert "learning" in answer.text
