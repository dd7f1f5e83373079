"""Lists the packages of the image as JSON. Runs inside it, with the standard library alone."""

import importlib.metadata
import json
import shutil
import subprocess


def python_packages() -> list[dict[str, str]]:
    """Every installed distribution with its version and licence, the first on the path if twice."""
    packages: dict[str, dict[str, str]] = {}
    for distribution in importlib.metadata.distributions():
        about = distribution.metadata
        fields = [about[name] for name in ("License-Expression", "License") if name in about]
        licence = next(filter(None, fields), "")
        if not licence or "\n" in licence:  # whole texts are no names
            marks = [mark for mark in about.get_all("Classifier") or [] if "License ::" in mark]
            licence = " AND ".join(mark.split(" :: ")[-1] for mark in marks)
        package = {"name": about["Name"], "version": about["Version"], "licence": licence}
        packages.setdefault(about["Name"].lower().replace("_", "-"), package)
    return [packages[name] for name in sorted(packages)]


def system_packages() -> list[dict[str, str]]:
    """Every package of Debian or of an RPM system."""
    if shutil.which("dpkg-query"):
        query = [
            "dpkg-query",
            "--show",
            "--showformat",
            "${Package}\t${Version}\t${Architecture}\n",
        ]
    else:
        query = ["rpm", "--all", "--query", "--queryformat"]
        query += ["%{NAME}\t%{VERSION}-%{RELEASE}\t%{ARCH}\n"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    fields = ("name", "version", "architecture")
    return [dict(zip(fields, line.split("\t"), strict=True)) for line in sorted(lines)]


def system() -> dict[str, str]:
    """Fields of /etc/os-release: ID, VERSION_ID, ..."""
    with open("/etc/os-release") as lines:
        pairs = [line.rstrip().partition("=") for line in lines]
    return {name: value.strip('"') for name, _, value in pairs if name}


if __name__ == "__main__":
    print(json.dumps({"system": system(), "os": system_packages(), "python": python_packages()}))
