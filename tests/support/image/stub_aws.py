"""The `aws` command as far as image/*.sh use it: ECR from a local registry, Inspector from a file.

STUB_CERTIFICATE is the registry's, STUB_VULNERABILITIES names what ScanSbom finds. Started as a
script with the SDK's Python, so it imports nothing of this project.
"""

import argparse
import base64
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

HOST = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
REPOSITORY = "sagemaker-llm-container"
TOKEN = "made-up-token"
PORT = 443
MANIFESTS = ", ".join(
    f"application/vnd.{kind}.v{version}+json"
    for kind, version in (("docker.distribution.manifest", 2), ("oci.image.manifest", 1))
)


@dataclass
class Registry:
    """A running registry; asked over its API."""

    certificate: Path

    def tags(self) -> list[str]:
        """The tags in the repository."""
        try:
            with self._ask("tags/list") as answer:
                return json.load(answer)["tags"] or []
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return []

    def digest(self, tag: str) -> str:
        """The digest of what a tag names."""
        with self._ask(f"manifests/{tag}", method="HEAD", accept=MANIFESTS) as answer:
            return answer.headers["Docker-Content-Digest"]

    def _ask(self, path: str, method: str = "GET", accept: str = "*/*"):
        url = f"https://127.0.0.1:{PORT}/v2/{REPOSITORY}/{path}"
        password = base64.b64encode(f"AWS:{TOKEN}".encode()).decode()
        headers = {"Authorization": f"Basic {password}", "Accept": accept}
        context = ssl.create_default_context(cafile=self.certificate)
        context.check_hostname = False
        request = urllib.request.Request(url, headers=headers, method=method)
        return urllib.request.urlopen(request, context=context, timeout=30)


def describe_images(registry: Registry, repository: str, image_ids: str | None) -> dict:
    """What ECR's DescribeImages says of the local registry."""
    assert repository == REPOSITORY, repository
    tags = [image_ids.removeprefix("imageTag=")] if image_ids else registry.tags()
    details = [
        {"imageTags": [tag], "imageDigest": registry.digest(tag), "imagePushedAt": f"{order:09}"}
        for order, tag in enumerate(tags)
    ]
    return {"imageDetails": details}


def scan_sbom(sbom: str) -> dict:
    """What Inspector's ScanSbom answers: the bill with vulnerabilities."""
    bill = json.loads(Path(sbom.removeprefix("file://")).read_text())
    assert bill["specVersion"] == "1.5", bill["specVersion"]
    vulnerabilities = json.loads(os.environ.get("STUB_VULNERABILITIES", "[]"))
    return {"sbom": bill | {"vulnerabilities": vulnerabilities}}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("service")
    parser.add_argument("operation")
    for option in ("repository-name", "image-ids", "query", "output", "sbom", "output-format"):
        parser.add_argument(f"--{option}")
    arguments = parser.parse_args()
    match arguments.service, arguments.operation:
        case "ecr", "get-login-password":
            print(TOKEN)
            return
        case "ecr", "describe-images":
            registry = Registry(Path(os.environ["STUB_CERTIFICATE"]))
            answer = describe_images(registry, arguments.repository_name, arguments.image_ids)
        case "inspector-scan", "scan-sbom":
            answer = scan_sbom(arguments.sbom)
        case other:
            sys.exit(f"the stub has no {other}")
    if arguments.query:
        import jmespath  # the SDK's environment has it, as the real command's has

        answer = jmespath.search(arguments.query, answer)
    if arguments.output == "text":
        print("\t".join(answer) if isinstance(answer, list) else answer)
    else:
        print(json.dumps(answer))


if __name__ == "__main__":
    main()
