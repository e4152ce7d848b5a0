"""Noise_XX_25519_ChaChaPoly_SHA256 as libp2p speaks it, the dialling side.

Specification: https://noiseprotocol.org/noise.html, https://github.com/libp2p/specs/tree/master/noise.
"""

from __future__ import annotations

import hmac
from hashlib import sha256
from typing import Any, Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from google.protobuf.message import DecodeError

from swarm.errors import InvalidInput, MalformedFrame, Unauthorized
from swarm.net.edge.negotiation import read_exactly
from swarm.net.forwarding import forwarding_pb2 as pb
from swarm.net.identity import Identity, peer_id_of, verify
from swarm.types import PeerId

NOISE = "/noise"
NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"
SIGNED = b"noise-libp2p-static-key:"
KEY, TAG, LARGEST = 32, 16, 65535


class Carrier(Protocol):
    """Bytes both ways."""

    async def read(self, n: int) -> bytes:
        """At most so many; none at the end."""

    async def write(self, data: bytes) -> None: ...


class _Cipher:
    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._count = 0

    def _nonce(self) -> bytes:
        self._count += 1
        return bytes(4) + (self._count - 1).to_bytes(8, "little")

    def encrypt(self, data: bytes, also: bytes = b"") -> bytes:
        return self._cipher.encrypt(self._nonce(), data, also)

    def decrypt(self, data: bytes, also: bytes = b"") -> bytes:
        """Raises MalformedFrame."""
        try:
            return self._cipher.decrypt(self._nonce(), data, also)
        except InvalidTag as error:
            raise MalformedFrame("what came is not encrypted with the key that was agreed") from error


class _Handshake:
    """The symmetric state: what was said, and the keys that follow from it."""

    def __init__(self) -> None:
        self._hash = self._chain = NAME
        self._cipher: _Cipher | None = None
        self.heard(b"")  # the prologue

    def heard(self, data: bytes) -> None:
        self._hash = sha256(self._hash + data).digest()

    def agree(self, mine: X25519PrivateKey, theirs: bytes) -> None:
        """Raises MalformedFrame for a key that is none."""
        try:
            shared = mine.exchange(X25519PublicKey.from_public_bytes(theirs))
        except ValueError as error:
            raise MalformedFrame("that is no key of X25519") from error
        self._chain, key = _derived(self._chain, shared)
        self._cipher = _Cipher(key)

    def sealed(self, data: bytes) -> bytes:
        assert self._cipher is not None
        sealed = self._cipher.encrypt(data, self._hash)
        self.heard(sealed)
        return sealed

    def opened(self, sealed: bytes) -> bytes:
        """Raises MalformedFrame."""
        assert self._cipher is not None
        data = self._cipher.decrypt(sealed, self._hash)
        self.heard(sealed)
        return data

    def split(self) -> tuple[_Cipher, _Cipher]:
        """For what is sent, and for what comes."""
        mine, theirs = _derived(self._chain, b"")
        return _Cipher(mine), _Cipher(theirs)


def _derived(chain: bytes, key: bytes) -> tuple[bytes, bytes]:
    secret = hmac.digest(chain, key, "sha256")
    first = hmac.digest(secret, b"\x01", "sha256")
    return first, hmac.digest(secret, first + b"\x02", "sha256")


class Secured:
    """What is carried, once both sides have proved who they are."""

    def __init__(self, carrier: Carrier, ciphers: tuple[_Cipher, _Cipher]) -> None:
        self._carrier = carrier
        self._sending, self._coming = ciphers
        self._unread = b""

    async def read(self, n: int) -> bytes:
        """At most so many bytes. Raises MalformedFrame, StreamClosed."""
        while not self._unread:
            self._unread = self._coming.decrypt(await _read(self._carrier))
        data, self._unread = self._unread[:n], self._unread[n:]
        return data

    async def write(self, data: bytes) -> None:
        for begin in range(0, len(data), LARGEST - TAG):
            await _write(self._carrier, self._sending.encrypt(data[begin : begin + LARGEST - TAG]))


async def secured(carrier: Carrier, identity: Identity, peer_id: PeerId) -> Secured:
    """Prove who we are, and that the other side is this peer.

    Raises Unauthorized for somebody else, MalformedFrame, StreamClosed.
    """
    state, once, mine = _Handshake(), X25519PrivateKey.generate(), X25519PrivateKey.generate()
    first = once.public_key().public_bytes_raw()
    state.heard(first)
    state.heard(b"")
    await _write(carrier, first)
    answer = await _read(carrier)
    theirs = answer[:KEY]
    state.heard(theirs)
    state.agree(once, theirs)
    static = state.opened(answer[KEY : 2 * KEY + TAG])
    state.agree(once, static)
    _check(state.opened(answer[2 * KEY + TAG :]), static, peer_id)
    key = mine.public_key().public_bytes_raw()
    sealed = state.sealed(key)
    state.agree(mine, theirs)
    proof = pb.NoisePayload(identity_key=identity.public_bytes, identity_sig=identity.sign(SIGNED + key))
    await _write(carrier, sealed + state.sealed(proof.SerializeToString()))
    return Secured(carrier, state.split())


def _check(payload: bytes, static: bytes, peer_id: PeerId) -> None:
    """Raises MalformedFrame, Unauthorized."""
    try:
        proof = pb.NoisePayload.FromString(payload)
        proved = peer_id_of(proof.identity_key) == peer_id
        proved = proved and verify(proof.identity_key, proof.identity_sig, SIGNED + static)
    except (DecodeError, InvalidInput) as error:
        raise MalformedFrame("the other side does not say who it is") from error
    if not proved:
        raise Unauthorized(f"who answers does not prove to be {peer_id}")


async def _read(carrier: Any) -> bytes:
    return await read_exactly(carrier, int.from_bytes(await read_exactly(carrier, 2), "big"))


async def _write(carrier: Carrier, data: bytes) -> None:
    await carrier.write(len(data).to_bytes(2, "big") + data)
