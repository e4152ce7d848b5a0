"""A swarm with a key: who lacks it finds nothing in the directory, cannot read what is stored with it, and gets no
stream answered.

From the key, 32 random bytes, others are derived (HKDF, RFC 5869). Names in the directory are HMACs, values are sealed
(ChaCha20-Poly1305, RFC 8439, with a key for each name). At the beginning of a stream the two sides prove to each other
that they have the key (SKID3: Handbook of Applied Cryptography, 10.17), with HMACs over both nonces, the protocol, and
both peer ids, which the connection has authenticated: nobody can pass a proof on.
"""

from __future__ import annotations

import asyncio
import hmac
import os
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from swarm.errors import FrameTooLarge, InvalidInput, MalformedFrame, RecordRefused, StreamClosed, WrongSwarmKey
from swarm.net.base import Stream
from swarm.types import PeerId

HOW_TO_MAKE = "make one with: openssl rand -hex 32 > swarm.key"
NONCE = 32
OVERHEAD = 12 + 16
"""Bytes by which a sealed value is longer."""
_PATIENCE = 10.0
"""Seconds that the other side may take to prove itself."""
_LARGEST = 4096


class Seal(Protocol):
    """How names and values stand in the directory."""

    def name(self, name: str) -> str:
        """What `name` is called there."""

    def close(self, place: bytes, value: bytes) -> bytes:
        """`value` as it stands under `place`, the bytes of the name's id."""

    def open(self, place: bytes, sealed: bytes) -> bytes:
        """What stands there. Raises RecordRefused."""


class NoSeal:
    """Everybody may read; satisfies `Seal`."""

    def name(self, name: str) -> str:
        """As in `Seal`."""
        return name

    def close(self, place: bytes, value: bytes) -> bytes:
        """As in `Seal`."""
        return value

    def open(self, place: bytes, sealed: bytes) -> bytes:
        """As in `Seal`."""
        return sealed


class SwarmKey:
    """A swarm's key, `secret`, 32 bytes; satisfies `Seal`."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise InvalidInput(f"a swarm key is 32 bytes, not {len(secret)}")
        self._names, self._values, self._streams = (
            HKDF(SHA256(), 32, None, b"swarm-key/1/" + purpose).derive(secret)
            for purpose in (b"names", b"values", b"streams")
        )
        self._cipher = lru_cache(4096)(self._cipher_of)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SwarmKey:
        """The key in a file: 64 hexadecimal digits. Raises InvalidInput, which never shows what is in the file."""
        path = Path(path)
        try:
            if not path.is_file() or path.stat().st_size > _LARGEST:
                raise InvalidInput(f"there is no swarm key in {str(path)!r}; {HOW_TO_MAKE}")
            secret = bytes.fromhex(path.read_text(encoding="ascii").strip())
        except OSError as error:
            raise InvalidInput(f"the swarm key {str(path)!r} cannot be read: {error.strerror}") from error
        except ValueError:
            secret = b""
        if len(secret) != 32:
            raise InvalidInput(f"{str(path)!r} holds no swarm key, which is 64 hexadecimal digits; {HOW_TO_MAKE}")
        return cls(secret)

    # ---- the directory ----------------------------------------------------------------------------------------

    def name(self, name: str) -> str:
        """As in `Seal`: 64 hexadecimal digits that say nothing of the name."""
        return hmac.digest(self._names, name.encode(), "sha256").hex()

    def close(self, place: bytes, value: bytes) -> bytes:
        """As in `Seal`."""
        nonce = os.urandom(12)
        return nonce + self._cipher(place).encrypt(nonce, value, place)

    def open(self, place: bytes, sealed: bytes) -> bytes:
        """As in `Seal`."""
        try:
            return self._cipher(place).decrypt(sealed[:12], sealed[12:], place)
        except (InvalidTag, ValueError) as error:
            raise RecordRefused("a value that was not sealed with this swarm's key") from error

    def _cipher_of(self, place: bytes) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(hmac.digest(self._values, place, "sha256"))

    # ---- streams ----------------------------------------------------------------------------------------------

    async def prove_to(self, stream: Stream, protocol: str, me: PeerId) -> None:
        """The part of who opened a stream. Raises WrongSwarmKey, and closes it, where the other side has not the key;
        StreamClosed."""
        try:
            async with asyncio.timeout(_PATIENCE):
                mine = os.urandom(NONCE)
                await stream.send(mine)
                answer = await stream.receive(2 * NONCE)
                theirs, proof = answer[:NONCE], answer[NONCE:]
                said = (protocol, me, stream.peer_id, mine, theirs)
                if not hmac.compare_digest(proof, self._proof(b"opened", *said)):
                    raise WrongSwarmKey(f"{stream.peer_id} has not this swarm's key")
                await stream.send(self._proof(b"opener", *said))
        except (StreamClosed, FrameTooLarge, MalformedFrame, TimeoutError) as error:
            stream.close()
            text = f"{stream.peer_id} does not prove that it has this swarm's key"
            raise WrongSwarmKey(text).attach(peer=stream.peer_id) from error
        except BaseException:
            stream.close()
            raise

    async def ask_of(self, stream: Stream, protocol: str, me: PeerId) -> bool:
        """The part of whom a stream was opened to: whether the other side has the key; it learns nothing but that we
        have. Raises StreamClosed, ProtocolError."""
        try:
            async with asyncio.timeout(_PATIENCE):
                theirs = await stream.receive(NONCE)
                if len(theirs) != NONCE:
                    return False
                mine = os.urandom(NONCE)
                said = (protocol, stream.peer_id, me, theirs, mine)
                await stream.send(mine + self._proof(b"opened", *said))
                return hmac.compare_digest(await stream.receive(NONCE), self._proof(b"opener", *said))
        except TimeoutError:
            return False

    def _proof(self, role: bytes, protocol: str, opener: PeerId, opened: PeerId, first: bytes, second: bytes) -> bytes:
        parts = (role, protocol.encode(), opener.encode(), opened.encode(), first, second)
        return hmac.digest(self._streams, b"".join(len(part).to_bytes(4, "big") + part for part in parts), "sha256")
