"""Certificates of the edge: nobody signs them, browsers know them by their hashes, which are in the addresses.

WebRTC's is kept for years. A browser takes a WebTransport certificate only if it lives for at most 14 days, so there
are always two, the present one and the next, and an address names both: it can be dialled until the next one ends.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import swarm.net.patches  # noqa: F401  isort: skip  (before libp2p)

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from libp2p.transport.webrtc.certificate import WebRTCCertificate
from libp2p.transport.webtransport.certificate import WebTransportCertificate

from swarm.errors import InvalidInput

HOUR = 3600.0
DAY = 24 * HOUR
LIFE = 13 * DAY
"""Of a WebTransport certificate. Browsers allow 14 days, by clocks that may be wrong."""
OVERLAP = 2 * DAY
"""The next certificate is valid for so long before the present one ends."""
SKEW = HOUR
"""By so much a browser's clock may be wrong."""
WEBRTC_DAYS = 3650

_END = b"-----END CERTIFICATE-----\n"


@dataclass(frozen=True, slots=True, order=True)
class Window:
    """When a certificate is valid, in unix seconds."""

    begins: float
    ends: float

    def good(self, now: float) -> bool:
        """Whether it is valid by everybody's clock."""
        return self.begins + SKEW <= now < self.ends - SKEW


def plan(kept: Sequence[Window], now: float) -> tuple[tuple[Window, ...], int]:
    """The certificates to keep at `now`, in order of time, and which of them is the present one.

    Those of `kept` that are still of use, and what is missing: a present one, and a next one that begins before that
    ends. Those before the present one are past: an address that names one of them and the present one is still good,
    and who dials it wants to hear that both are ours.
    """
    windows = sorted(window for window in kept if now - LIFE < window.ends)
    if not any(window.good(now) for window in windows):
        windows = sorted([*windows, Window(now - SKEW, now - SKEW + LIFE)])
    present = next(i for i, window in enumerate(windows) if window.good(now))
    change = windows[present].ends - SKEW
    following = [window for window in windows[present + 1 :] if window.good(change)]
    if not following:
        following = [Window(windows[present].ends - OVERLAP, windows[present].ends - OVERLAP + LIFE)]
    return (*windows[: present + 1], following[0]), present


class Certificates:
    """The certificates of one identity, kept beside its file. `now` is the time in unix seconds.

    What is asked of it and not described is what libp2p's WebTransport listener asks of its certificate manager.
    """

    def __init__(self, identity_path: str | os.PathLike[str] | None, now: Callable[[], float] = time.time) -> None:
        """Raises InvalidInput for a broken file, or a place that cannot be written."""
        self._now = now
        self._lock = threading.Lock()
        self._webtransport_file = _beside(identity_path, ".webtransport.pem")
        self._certificates = [WebTransportCertificate(*pair) for pair in _read(self._webtransport_file)]
        self.webrtc = _webrtc(_beside(identity_path, ".webrtc.pem"))

    def webtransport(self) -> WebTransportCertificate:
        """The one to show to who connects now."""
        certificates, present = self._renewed()
        return certificates[present]

    def _renewed(self) -> tuple[list[WebTransportCertificate], int]:
        """All that are of use now, with new ones where the plan wants them, and which is the present one."""
        with self._lock:
            before = [_window(certificate) for certificate in self._certificates]
            windows, present = plan(before, self._now())
            if list(windows) != before:
                known = dict(zip(before, self._certificates, strict=True))
                self._certificates = [known.get(window) or _webtransport(window) for window in windows]
                _write(self._webtransport_file, [(c.certificate, c.private_key) for c in self._certificates])
            return self._certificates, present

    def rotate_if_needed(self) -> None:
        self._renewed()

    def advertised_multibase(self) -> list[str]:
        """Hashes for addresses: of the present certificate and of the next."""
        certificates, present = self._renewed()
        return [certificate.fingerprint_to_multibase() for certificate in certificates[present:]]

    def advertised_multihash_bytes(self) -> list[bytes]:
        """Hashes that are told within the connection: also of those that have ended lately."""
        return [certificate.fingerprint_to_multihash() for certificate in self._renewed()[0]]

    def apply_to_quic_configuration(self, configuration: Any) -> None:
        now = self.webtransport()
        configuration.certificate, configuration.private_key = now.certificate, now.private_key


def _window(certificate: WebTransportCertificate) -> Window:
    return Window(certificate.not_valid_before.timestamp(), certificate.not_valid_after.timestamp())


def _webtransport(window: Window) -> WebTransportCertificate:
    begins, ends = (datetime.fromtimestamp(int(t), UTC) for t in (window.begins, window.ends))
    return WebTransportCertificate.generate(not_valid_before=begins, not_valid_after=ends)


def _webrtc(file: Path | None) -> WebRTCCertificate:
    from aiortc.rtcdtlstransport import RTCCertificate

    pairs = _read(file)
    if not pairs:
        made = WebRTCCertificate.generate(validity_days=WEBRTC_DAYS)
        pairs = [(made.certificate, made.private_key)]
        _write(file, pairs)
    certificate = WebRTCCertificate(*pairs[0])
    # Where libp2p's listener looks for the same certificate as aiortc wants it.
    certificate._rtc_certificate = RTCCertificate(key=pairs[0][1], cert=pairs[0][0])  # type: ignore[attr-defined]
    return certificate


Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def _beside(identity_path: str | os.PathLike[str] | None, suffix: str) -> Path | None:
    if identity_path is None:
        return None
    file = Path(identity_path).expanduser()
    return file.with_name(file.name + suffix)


def _read(file: Path | None) -> list[Pair]:
    """The certificates in a file, with their keys. Raises InvalidInput."""
    if file is None or not file.exists():
        return []
    try:
        return [_pair(part + _END) for part in file.read_bytes().split(_END) if part]
    except (OSError, ValueError, TypeError) as error:
        raise InvalidInput(f"the certificates in {file} cannot be read: {error}; delete it to get new ones") from error


def _pair(pem: bytes) -> Pair:
    key, certificate = load_pem_private_key(pem, password=None), x509.load_pem_x509_certificate(pem)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ValueError("a certificate and its key do not belong together")
    return certificate, key


def _write(file: Path | None, pairs: Sequence[Pair]) -> None:
    """Whole or not at all, and only its owner can read it. Raises InvalidInput."""
    if file is None:
        return
    key_format = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        try:
            with os.fdopen(handle, "wb") as out:
                out.writelines(key.private_bytes(*key_format) + c.public_bytes(Encoding.PEM) for c, key in pairs)
            Path(temporary).replace(file)
        finally:
            with contextlib.suppress(FileNotFoundError):
                Path(temporary).unlink()
    except OSError as error:
        raise InvalidInput(f"certificates cannot be kept in {file}: {error}") from error
