"""Names the resources of a deployment by their ARNs. Pure."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from sagemaker_deploy.config import Config
from sagemaker_deploy.plan.variants import all_changes

ECR_HOST = re.compile(r"(\d{12})\.dkr\.ecr\.([a-z0-9-]+)\.amazonaws\.com")


@dataclass(frozen=True, slots=True)
class Arns:
    """The ARNs of one deployment's resources. SageMaker's have names in lower case."""

    config: Config
    region: str
    account: str

    @property
    def partition(self) -> str:
        """The partition, such as aws or aws-cn: that of the role."""
        return self.config.role.split(":")[1]

    @property
    def repositories(self) -> list[str]:
        """The repositories of the images, whose accounts and regions are in the images' names."""
        others = (changes.image for changes in all_changes(self.config).values())
        images = [self.config.image, *(image for image in others if image)]
        return list(dict.fromkeys(map(self._repository, images)))

    def _repository(self, image: str) -> str:
        match = ECR_HOST.match(image)
        account, region = match.groups() if match else (self.account, self.region)
        path = image.partition("/")[2].partition("@")[0].partition(":")[0]
        return f"arn:{self.partition}:ecr:{region}:{account}:repository/{path}"

    def of(self, service: str, resource: str) -> str:
        """Return the ARN of a resource in this region and account."""
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def sagemaker(self, kind: str, suffix: str = "") -> str:
        """Return the ARN of SageMaker's resource that has the deployment's name and a suffix."""
        return self.of("sagemaker", f"{kind}/{self.config.name.lower()}{suffix}")

    def alarms(self, names: Iterable[str]) -> list[str]:
        """Return the ARNs of alarms."""
        return [self.of("cloudwatch", f"alarm:{name}") for name in names]

    def bucket(self, url: str) -> str:
        """Return the ARN of the bucket of an s3:// URL."""
        return f"arn:{self.partition}:s3:::{url.removeprefix('s3://').partition('/')[0]}"

    def object(self, url: str) -> str:
        """Return the ARN of the object of an s3:// URL."""
        return f"arn:{self.partition}:s3:::{url.removeprefix('s3://')}"
