"""Certificates for tests of TLS, made with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.servers import HOST


def make_certificates(directory: Path) -> None:
    """An authority, and a certificate of it for this host."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    fresh = ["-newkey", "rsa:2048", "-nodes"]
    openssl("req", "-x509", *fresh, "-days", "1", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    openssl("req", *fresh, "-subj", "/CN=host", "-keyout", "own.key", "-out", "own.csr")
    (directory / "names").write_text(f"subjectAltName=IP:{HOST}\n")
    signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1", "-extfile", "names"]
    openssl("x509", "-req", "-in", "own.csr", *signed, "-out", "own.pem")
