"""Pictures that strangers or users hand in: a few formats, no more bytes and pixels than anybody needs, or refused."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from swarm.errors import InvalidInput

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
MOST_BYTES = 32 << 20
"""Of a file."""
MOST_PIXELS = 40_000_000
"""A file of a few kilobytes can say that it has billions: they are counted before any is unpacked."""
TOO_MANY = f"more than {MOST_PIXELS // 1_000_000} million pixels; make it smaller"


def open_picture(path: Path) -> Image:
    """A picture in a file. Raises InvalidInput, also where there is none."""
    if not path.is_file():
        raise InvalidInput(f"{path}: there is no such file")
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    return read_picture(data, str(path))


def read_picture(data: bytes, name: str) -> Image:
    """The first (or only) picture in these bytes, in red, green and blue; `name`: what errors call it.

    Raises InvalidInput.
    """
    from PIL import Image

    if len(data) > MOST_BYTES:
        raise InvalidInput(f"{name}: a picture of more than {MOST_BYTES >> 20} MiB; make it smaller")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # bounds are checked here
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise InvalidInput(f"{name}: {TOO_MANY}")
            return picture.convert("RGB")
    except InvalidInput:
        raise
    except Image.DecompressionBombError:
        raise InvalidInput(f"{name}: {TOO_MANY}") from None
    except Exception as error:  # decoders fail in as many ways as there are formats
        words = " ".join(str(error).split())[:200]
        raise InvalidInput(f"{name}: it is no picture in {', '.join(FORMATS)} that can be read: {words}") from error
