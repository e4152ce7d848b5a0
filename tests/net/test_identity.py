"""Keys in files, peer ids and signatures."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from swarm.errors import InvalidInput
from swarm.net.identity import Identity, peer_id_of, verify


def test_an_identity_is_made_once_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "not" / "there" / "yet.key"
    made = Identity.load_or_create(str(path))
    assert Identity.load_or_create(str(path)).peer_id == made.peer_id
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_without_a_path_each_is_new() -> None:
    assert Identity.load_or_create(None).peer_id != Identity.load_or_create(None).peer_id


def test_all_who_make_one_at_the_same_time_have_the_same(tmp_path: Path) -> None:
    path, found, start = tmp_path / "key", [], threading.Barrier(8)

    def load() -> None:
        start.wait()
        found.append(Identity.load_or_create(path).peer_id)

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_libp2p_reads_the_key_and_knows_it_by_the_same_peer_id() -> None:
    from libp2p.crypto.ed25519 import Ed25519PrivateKey
    from libp2p.crypto.serialization import deserialize_public_key
    from libp2p.peer.id import ID

    identity = Identity.generate()
    public = deserialize_public_key(identity.public_bytes)
    assert ID.from_pubkey(public).to_base58() == identity.peer_id
    assert public.verify(b"data", identity.sign(b"data"))
    private = Ed25519PrivateKey.from_bytes(identity.private_bytes[4:36])
    assert private.get_public_key().serialize() == identity.public_bytes


def test_signatures() -> None:
    one, other = Identity.generate(), Identity.generate()
    signature = one.sign(b"data")
    assert verify(one.public_bytes, signature, b"data")
    assert not verify(one.public_bytes, signature, b"date")
    assert not verify(other.public_bytes, signature, b"data")
    assert not verify(one.public_bytes, b"", b"data")


@pytest.mark.parametrize(
    "public", [b"", b"x" * 36, Identity.generate().public_bytes + b"x"], ids=["nothing", "letters", "too long"]
)
def test_what_is_no_key_is_refused(public: bytes) -> None:
    with pytest.raises(InvalidInput):
        peer_id_of(public)
    with pytest.raises(InvalidInput):
        verify(public, bytes(64), b"data")


def _halves_of_two_keys() -> bytes:
    return Identity.generate().private_bytes[:36] + Identity.generate().public_bytes[4:]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", bytes(68), Identity.generate().private_bytes[:-1], _halves_of_two_keys()],
    ids=["nothing", "text", "zeros", "too short", "halves of two keys"],
)
def test_a_broken_file_is_named_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=str(path)):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InvalidInput, match="file"):
        Identity.load_or_create(tmp_path / "file" / "key")
    with pytest.raises(InvalidInput, match=str(tmp_path)):
        Identity.load_or_create(tmp_path)


@pytest.mark.parametrize("path", ["~nobody-of-this-name/key", "a\0b", "/dev/null/key", "/proc/nowhere/key"])
def test_a_path_where_no_key_can_be_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="identity"):
        Identity.load_or_create(path)


def test_each_loading_of_a_key_is_an_instance_of_its_own(tmp_path: Path) -> None:
    one, other = (Identity.load_or_create(tmp_path / "key") for _ in range(2))
    assert one.peer_id == other.peer_id
    assert one.instance != other.instance
