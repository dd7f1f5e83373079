"""Turn an image's inventory (standard input) into a software bill of materials (standard output).

The format is CycloneDX 1.5, the one that Amazon Inspector's ScanSbom takes. The argument is the
image's name.
"""

import json
import sys
from collections.abc import Iterator
from typing import Any

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot5
from packageurl import PackageURL


def bill(image: str, inventory: dict[str, Any]) -> Bom:
    """Make the bill."""
    document = Bom(components=[*_python(inventory["python"]), *_system(inventory)])
    document.metadata.component = Component(name=image, type=ComponentType.CONTAINER)
    document.register_dependency(document.metadata.component, document.components)
    return document


def _python(packages: list[dict[str, str]]) -> Iterator[Component]:
    licences = LicenseFactory()
    for package in packages:
        purl = PackageURL(
            "pypi", None, package["name"].lower().replace("_", "-"), package["version"]
        )
        licence = package["licence"]
        yield Component(
            name=package["name"],
            version=package["version"],
            type=ComponentType.LIBRARY,
            purl=purl,
            bom_ref=purl.to_string(),
            licenses=[licences.make_from_string(licence)] if licence else [],
        )


def _system(inventory: dict[str, Any]) -> Iterator[Component]:
    """Components of the operating system, and the system itself."""
    about = inventory["system"]
    kind = "deb" if about["ID"] in ("debian", "ubuntu") else "rpm"
    yield Component(
        name=about["ID"], version=about["VERSION_ID"], type=ComponentType.OPERATING_SYSTEM
    )
    for package in inventory["os"]:
        qualifiers = {
            "arch": package["architecture"],
            "distro": f"{about['ID']}-{about['VERSION_ID']}",
        }
        purl = PackageURL(kind, about["ID"], package["name"], package["version"], qualifiers)
        yield Component(
            name=package["name"],
            version=package["version"],
            type=ComponentType.LIBRARY,
            purl=purl,
            bom_ref=purl.to_string(),
        )


if __name__ == "__main__":
    print(JsonV1Dot5(bill(sys.argv[1], json.load(sys.stdin))).output_as_string(indent=1))
