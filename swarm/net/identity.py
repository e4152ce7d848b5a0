"""Who a peer is: an Ed25519 key in a file. The peer id is a hash of the public key, as libp2p defines it."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from functools import lru_cache
from pathlib import Path

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from swarm.errors import InvalidInput
from swarm.types import PeerId

# libp2p's protobuf for keys, {1: type = Ed25519, 2: data}, with lengths that never change for this kind of key.
_PRIVATE = bytes((0x08, 0x01, 0x12, 0x40))
_PUBLIC = bytes((0x08, 0x01, 0x12, 0x20))
_IDENTITY_HASH = bytes((0x00, 0x24))
"""A multihash that is no hash: keys this short are their own digest."""


class Identity:
    """A private key, its public key and the peer id."""

    def __init__(self, seed: bytes) -> None:
        self.instance = 1 + secrets.randbelow(0xFFFF_FFFF)
        """Drawn each time that a key is loaded: tells two processes apart that have the same."""
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        self._seed = seed
        self.public_bytes = _PUBLIC + self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        """The public key in libp2p's encoding, 36 bytes."""
        self.peer_id: PeerId = peer_id_of(self.public_bytes)

    @classmethod
    def generate(cls) -> Identity:
        return cls(os.urandom(32))

    @classmethod
    def load_or_create(cls, path: str | os.PathLike[str] | None) -> Identity:
        """Read the key, or make one; only its owner can read the file. Without a path: a new one, kept nowhere.

        Raises InvalidInput for a broken file, and for a path where none can be.
        """
        if path is None:
            return cls.generate()
        try:
            file = Path(path).expanduser()
            if not file.exists():
                cls.generate().save(file)
            data = file.read_bytes()
        except InvalidInput:
            raise
        except (OSError, RuntimeError, ValueError) as error:  # no such home, a null byte in the path
            raise InvalidInput(f"the identity file {str(path)!r} cannot be read: {error}") from error
        if len(data) != 68 or not data.startswith(_PRIVATE):
            raise InvalidInput(f"{file} is no Ed25519 libp2p key; delete it to get a new identity")
        identity = cls(data[4:36])
        if identity.public_bytes[4:] != data[36:]:
            raise InvalidInput(f"the two halves of the key in {file} do not belong together; delete it")
        return identity

    @property
    def private_bytes(self) -> bytes:
        """The private key in libp2p's encoding, as it is in the file."""
        return _PRIVATE + self._seed + self.public_bytes[4:]

    def save(self, file: Path) -> None:
        """Write the key into a new file, whole or not at all; a file that is there already is left alone.

        Raises InvalidInput when the place cannot be written.
        """
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
            try:
                with os.fdopen(handle, "wb") as out:
                    out.write(self.private_bytes)
                with contextlib.suppress(FileExistsError):
                    os.link(temporary, file)
            finally:
                Path(temporary).unlink()
        except OSError as error:
            raise InvalidInput(f"the identity cannot be kept in {file}: {error}") from error

    @property
    def key(self) -> bytes:
        """The public key alone, 32 bytes."""
        return self.public_bytes[4:]

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature, 64 bytes."""
        return self._key.sign(data)


@lru_cache(8192)
def peer_id_of(public_bytes: bytes) -> PeerId:
    """The peer id of an Ed25519 public key in libp2p's encoding. Raises InvalidInput for anything else."""
    if len(public_bytes) != 36 or not public_bytes.startswith(_PUBLIC):
        raise InvalidInput("not an Ed25519 public key in libp2p's encoding")
    return base58.b58encode(_IDENTITY_HASH + public_bytes).decode()


def verify(public_bytes: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the owner of the public key signed `data`. Raises InvalidInput for anything but a key."""
    peer_id_of(public_bytes)
    try:
        Ed25519PublicKey.from_public_bytes(public_bytes[4:]).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


def verify_by(key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether the owner of a public key of 32 bytes signed `data`."""
    return len(key) == 32 and verify(_PUBLIC + key, signature, data)


def name_of(key: bytes) -> PeerId:
    """What the owner of a public key of 32 bytes would be called as a peer. Raises InvalidInput for anything else."""
    return peer_id_of(_PUBLIC + key)
