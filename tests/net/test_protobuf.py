"""hivemind and libp2p in one process, whoever comes first. Each case is an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

AGREE = """
import tempfile
from pathlib import Path
from hivemind.p2p import P2P, PeerID
from libp2p.crypto.pb import crypto_pb2
from libp2p.crypto.rsa import RSAPrivateKey
from libp2p.peer.id import ID
with tempfile.TemporaryDirectory() as folder:
    P2P.generate_identity(f"{folder}/key")
    data = Path(folder, "key").read_bytes()
private = crypto_pb2.PrivateKey.FromString(data)
assert private.key_type == crypto_pb2.KeyType.RSA
public = RSAPrivateKey.from_bytes(private.data).get_public_key()
print(PeerID.from_identity(data).to_base58() == ID.from_pubkey(public).to_base58())
"""


def run(code: str) -> list[str]:
    """The lines that `code` prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_swarm_first() -> None:
    before = """
import swarm.net.protobuf, hivemind, logging, sys
print("libp2p" in sys.modules, "trio" in sys.modules, logging.getLevelName(logging.WARNING))
print(hasattr(hivemind, "__nothing__"), hivemind.__version__ != "", hasattr(hivemind, "nothing"), hivemind.DHT.__name__)
"""
    assert run(before + AGREE) == ["False False WARNING", "False True False DHT", "True"]


def test_libp2p_first() -> None:
    assert run("import libp2p; import swarm.net.protobuf" + AGREE) == ["True"]


def test_hivemind_first() -> None:
    """Then libp2p stays out, which the host over p2pd does not need."""
    assert run("import hivemind; import swarm.net.hivemind.host as net; print(net.HivemindHost.__name__)") == [
        "HivemindHost"
    ]
