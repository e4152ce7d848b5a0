"""The bytes that a token stands for: of characters that several tokens share, each has its own."""

from __future__ import annotations

import json
import re
from typing import Any

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class TokenBytes:
    """Of one tokenizer. Joined, the bytes of a text's tokens are the text in UTF-8, a space at its beginning aside."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        kinds = _decoders(tokenizer)
        self._letters = _byte_letters() if "ByteLevel" in kinds else {}
        self._space = kinds.get("Metaspace", {}).get("replacement") or _replaced_by_space(kinds)
        self._has_bytes = "ByteFallback" in kinds
        self._known = bool(self._letters or self._space or self._has_bytes)
        self._added = getattr(tokenizer, "added_tokens_decoder", {})

    def of(self, token: int) -> bytes:
        """The token's own, special ones included; none for a number that is no token."""
        if not self._known:
            # Of a kind that has no halves of characters, or of one that is not known.
            return str(self._tokenizer.decode([token])).encode(errors="replace")
        if token in self._added:
            return str(self._added[token]).encode(errors="replace")
        text = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(text, str):
            return b""
        if self._has_bytes and (match := BYTE.fullmatch(text)):
            return bytes([int(match[1], 16)])
        if self._letters and all(letter in self._letters for letter in text):
            return bytes(self._letters[letter] for letter in text)
        return (text.replace(self._space, " ") if self._space else text).encode(errors="replace")


def _decoders(tokenizer: Any) -> dict[str, Any]:
    """The steps by which the tokenizer's own decoder makes text of tokens, by their kind."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return {}
    state = json.loads(decoder.__getstate__())
    return {step["type"]: step for step in state.get("decoders", [state]) if step}


def _replaced_by_space(kinds: dict[str, Any]) -> str:
    step = kinds.get("Replace", {})
    return str(step.get("pattern", {}).get("String", "")) if step.get("content") == " " else ""


def _byte_letters() -> dict[str, int]:
    """The alphabet in which byte-level vocabularies are written: bytes that can be printed are themselves, the others
    are letters from 256 on."""
    printed = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(byte): byte for byte in printed} | {chr(256 + place): byte for place, byte in enumerate(others)}
