import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sagemaker_deploy.local.invocations.calls import Limits
from tests.support.aws.local_sagemaker import Local, running
from tests.support.aws.proxies import proxying

VENDORS = Path(__file__).parents[2] / "support" / "aws" / "vendor_container.py"
# Limits as the service's, shorter: whole answers end sooner than streams.
LIMITS = Limits(invoke_s=1.0, stream_s=4.0)


@pytest.fixture(scope="module")
def vendors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Endpoints whose containers answer as other images do; variables lead to them."""
    with (
        running([sys.executable, str(VENDORS)], tmp_path_factory.mktemp("logs"), LIMITS) as local,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name in ("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", "AWS_ENDPOINT_URL_SAGEMAKER"):
            patch.setenv(name, local.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        for vendor in ("tgi", "generate", "lmi", "vllm"):
            local.deploy(vendor, {"Environment": {"VENDOR": vendor}})
        yield local


@pytest.fixture(scope="module")
def proxy(vendors: Local, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A proxy in front of them; each model has its endpoint's name."""
    template = tmp_path_factory.mktemp("template") / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    models = {name: {"endpoint": name} for name in ("tgi", "generate", "lmi", "vllm")}
    templated = {"endpoint": "generate", "container": "tgi", "chat_template": template}
    with proxying(models | {"templated": templated}) as url:
        yield url
