from pathlib import Path
from typing import Any

import pytest

from sagemaker_deploy import config as configuration
from sagemaker_deploy.errors import ConfigError

GOOD: dict[str, Any] = {
    "name": "chat",
    "image": "000000000000.dkr.ecr.us-east-1.amazonaws.com/llm:1",
    "role": "arn:aws:iam::000000000000:role/SageMaker",
    "model": {"id": "org/model"},
    "instance_type": "ml.g5.xlarge",
}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "under_score"}, "name: string should match pattern"),
        ({"role": "SageMaker"}, "role: string should match"),
        ({"instance_count": 0}, "instance_count: input should be greater than or equal to 1"),
        ({"instancetype": "x"}, "instancetype: unknown key"),
        ({"instance_type": None}, "instance_type: not set"),
        ({"model": {}}, "model: give `id`"),
        ({"env": {"HF_TOKEN": "hf_x"}}, "env.HF_TOKEN: a secret"),
        ({"serverless": {}}, "instance_type: a serverless endpoint has none"),
        ({"scaling": {"min": 0, "max": 2, "target_concurrency": 1}}, "scaling.min: 0 needs"),
        ({"scaling": {"min": 3, "max": 2, "target_concurrency": 1}}, "scaling.max: less than"),
        ({"component": {}, "asynchronous": {"output": "s3://b/o"}}, "choose one of them"),
        ({"network": {"isolated": True}}, "network.isolated: the container cannot reach the Hub"),
        ({"model": {"id": "a/b", "code": "code"}}, "model.code: needs model.data"),
    ],
)
def test_a_mistake_is_named_with_its_key(changes: dict[str, Any], problem: str) -> None:
    values = {key: value for key, value in (GOOD | changes).items() if value is not None}
    with pytest.raises(ConfigError) as caught:
        configuration.parse(values)
    assert any(problem.lower() in one.lower() for one in caught.value.problems)


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        configuration.parse({"name": "chat", "instance_count": 0})
    assert len(caught.value.problems) == 3


def test_yaml_and_toml_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: chat\nmodel:\n  id: org/model\n")
    (tmp_path / "a.toml").write_text('name = "chat"\n[model]\nid = "org/model"\n')
    flags = {key: GOOD[key] for key in ("image", "role", "instance_type")}
    one = configuration.load(tmp_path / "a.yaml", flags)
    assert one == configuration.load(tmp_path / "a.toml", flags)


def test_flags_and_settings_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: chat\nenv: {A: '1', B: '2'}\n")
    flags = GOOD | {"name": "other", "env": {"B": "3"}}
    config = configuration.load(tmp_path / "a.yaml", flags, ("update.strategy=rolling",))
    assert config.name == "other"
    assert config.env == {"A": "1", "B": "3"}
    assert config.update.strategy == "rolling"


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        configuration.load(tmp_path / "none.yaml", {})


def test_broken_yaml_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: [")
    with pytest.raises(ConfigError) as caught:
        configuration.load(tmp_path / "a.yaml", {})
    assert "\n" not in caught.value.problems[0]
