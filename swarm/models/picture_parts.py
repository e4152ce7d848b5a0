"""Pictures in messages, as OpenAI's API has them. Nothing is fetched here."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from swarm.errors import InvalidInput
from swarm.models.pictures import MOST_BYTES, MOST_PIXELS, TOO_MANY, read_picture

if TYPE_CHECKING:
    from PIL.Image import Image

KIND = "image_url"
ROLES = ("user", "tool")
"""Who can show pictures."""
MOST_PICTURES = 16
"""Of a conversation."""
HOW = "send the picture itself: data:image/png;base64,…"


def picture_part(part: Mapping[str, Any], where: str, role: str) -> dict[str, Any]:
    """A part of type image_url with nothing but the picture, or its address. Raises InvalidInput for other URLs.

    How closely to look (`detail`) is the model's own affair.
    """
    image = part.get(KIND)
    url = image.get("url") if isinstance(image, Mapping) else image
    if not isinstance(url, str):
        raise _refused(f"{where} is of type {KIND}, which needs a url: {HOW}")
    if not is_address(url):
        _check_data(url, where)
    if role not in ROLES:
        raise _refused(f"{where} is of type {KIND}, and the role is {role[:40]}: pictures are for users and tools")
    return {"type": KIND, KIND: {"url": url}}


def is_address(url: str) -> bool:
    """Whether a picture is somewhere on the web."""
    return url[:8].casefold().startswith(("http://", "https://"))


def _check_data(url: str, where: str) -> None:
    head, comma, _ = url[:200].partition(",")
    if not head[:5].casefold() == "data:":
        raise _refused(f"{where} is of type {KIND} with an address: nothing is fetched here; {HOW}")
    if not comma or not head.casefold().endswith(";base64"):
        raise _refused(f"{where} is of type {KIND} with a data URL that is not base64; {HOW}")


def pictures_in(messages: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Where each picture of plain messages is, and its URL."""
    for place, message in enumerate(messages):
        content = message.get("content")
        for index, part in enumerate(content if isinstance(content, list) else ()):
            if part["type"] == KIND:
                yield f"messages[{place}].content[{index}]", part[KIND]["url"]


def open_pictures(messages: Sequence[Mapping[str, Any]]) -> list[Image]:
    """The pictures of plain messages, in order. Raises InvalidInput, also for more pixels than one may have."""
    found = list(pictures_in(messages))
    if len(found) > MOST_PICTURES:
        raise _refused(f"messages: {len(found)} pictures; at most {MOST_PICTURES} are looked at")
    opened: list[Image] = []
    pixels = 0
    for where, url in found:
        _check_data(url, where)
        try:
            opened.append(read_picture(_bytes(url, where), where))
        except InvalidInput as error:
            raise _refused(str(error)) from error
        pixels += opened[-1].width * opened[-1].height
        if pixels > MOST_PIXELS:
            raise _refused(f"{where}: all pictures together have {TOO_MANY}")
    return opened


def _bytes(url: str, where: str) -> bytes:
    body = url.partition(",")[2]
    if len(body) > MOST_BYTES * 2:
        raise _refused(f"{where}: a picture of more than {MOST_BYTES >> 20} MiB; make it smaller")
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _refused(f"{where}: what is in the data URL is not base64: {error}") from error


def _refused(words: str) -> InvalidInput:
    return InvalidInput(words, field="messages")
