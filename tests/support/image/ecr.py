"""A container registry under an ECR repository's name, and Docker's API over podman to push to it.

The registry is Debian's docker-registry with TLS and a password, as ECR has them. Only processes
in the private mount namespace of the API see the name; nothing of the machine's is changed.
"""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.image.stub_aws import HOST, PORT, Registry
from tests.support.servers import wait_for

# Of TOKEN, by bcrypt with the least work.
HTPASSWD = "AWS:$2b$04$dTgturxMHpqVdHn7pG3FAu9OB54eGlg.lQJxxukH/UxbZJlRLTOeu\n"


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def registry(folder: Path) -> Iterator[Registry]:
    """A registry on 127.0.0.1:443 with its certificate and its images in a folder."""
    assert not _accepts(PORT), f"port {PORT} is taken on this machine"
    key, certificate, passwords = folder / "key", folder / "certificate", folder / "htpasswd"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    passwords.write_text(HTPASSWD)
    settings = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "images")}},
        "http": {
            "addr": f"127.0.0.1:{PORT}",
            "tls": {"certificate": str(certificate), "key": str(key)},
        },
        "auth": {"htpasswd": {"realm": "ecr", "path": str(passwords)}},
    }
    (folder / "registry.json").write_text(json.dumps(settings))
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", folder / "registry.json"], stdout=log, stderr=log
        )
    try:
        wait_for(lambda: _accepts(PORT), 20, (folder / "registry.log").read_text)
        yield Registry(certificate)
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def docker_api(folder: Path, trusted: Path | None = None) -> Iterator[str]:
    """podman's Docker-compatible API, which finds HOST on this machine; the DOCKER_HOST."""
    hosts, bundle, api = folder / "hosts", folder / "bundle", folder / "docker.sock"
    hosts.write_text(f"{Path('/etc/hosts').read_text()}\n127.0.0.1 {HOST}\n")
    certificates = os.environ.get("SSL_CERT_FILE", "/etc/ssl/certs/ca-certificates.crt")
    bundle.write_text(Path(certificates).read_text() + (trusted.read_text() if trusted else ""))
    env = os.environ | {"CONTAINERS_CONF": os.environ["CONTAINERS_CONF_BUILD"]}
    env |= {"SSL_CERT_FILE": str(bundle), "SSL_CERT_DIR": str(folder / "none")}
    script = 'mount --bind "$1" /etc/hosts && exec podman system service --time 0 "unix://$2"'
    with (folder / "api.log").open("wb") as log:
        process = subprocess.Popen(
            ["unshare", "--mount", "bash", "-c", script, "api", hosts, api],
            env=env, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        wait_for(api.exists, 20, (folder / "api.log").read_text)
        yield f"unix://{api}"
    finally:
        process.terminate()
        process.wait(20)
