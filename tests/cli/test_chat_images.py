"""swarm-chat --image: a picture in a file, and what is not one."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from transformers import AutoProcessor

from swarm.cli import chat
from swarm.cli.chat import main
from swarm.errors import InvalidInput
from swarm.models.pictures import MOST_BYTES, open_picture, read_picture
from swarm.types import Span
from tests.checkpoints import Served
from tests.seeing import picture, save_seeing

pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Any, Path]]:
    folder = tmp_path_factory.mktemp("llava")
    whole = save_seeing(folder)
    servers = Served(folder, [Span(0, 2), Span(2, 6)])
    yield servers, whole, picture(folder / "picture.png")
    servers.close()


@pytest.fixture
def run(seeing: tuple[Served, Any, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    servers, _, _ = seeing
    monkeypatch.setattr("swarm.client.swarm.connect", lambda *peers, **options: servers.client("chat"))
    monkeypatch.setattr(chat, "check_joins", lambda network: None)

    def invoke(*arguments: str, said: str) -> Result:
        options = ["--temperature", "0", "--max-new-tokens", "6", "--dtype", "float32"]
        return CliRunner().invoke(main, [str(servers.folder), *options, *arguments], input=said)

    return invoke


def expected(folder: Path, whole: Any, contents: list[list[dict[str, Any]]]) -> list[str]:
    """The answers of plain transformers, each turn with all before it."""
    processor: Any = AutoProcessor.from_pretrained(folder)
    messages: list[dict[str, Any]] = []
    answers = []
    for content in contents:
        messages.append({"role": "user", "content": content})
        inputs = processor.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        options = {"max_new_tokens": 6, "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        with torch.no_grad():
            tokens = whole.generate(**inputs, **options)[0, inputs["input_ids"].shape[1] :]
        answers.append(processor.tokenizer.decode(tokens, skip_special_tokens=True))
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answers[-1]}]})
    return answers


def test_two_questions_about_a_picture(seeing: tuple[Served, Any, Path], run: Callable[..., Result]) -> None:
    servers, whole, path = seeing
    image = {"type": "image", "image": open_picture(path)}
    contents = [[image, {"type": "text", "text": "abc"}], [{"type": "text", "text": "def"}]]
    result = run("--image", str(path), said="abc\ndef\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.split() == expected(servers.folder, whole, contents)
    servers.assert_free()


def test_what_is_no_picture(run: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    result = run("--image", str(tmp_path / "text.png"), said="abc\n")
    assert result.exit_code == 1
    assert "it is no picture in PNG, JPEG" in result.stderr
    assert run("--image", str(tmp_path / "nothing.png"), said="abc\n").exit_code == 2


def png(width: int, height: int, data: bytes) -> bytes:
    """A file that says it has so many pixels, and holds `data`."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png(60_000, 60_000, bytes(1 << 20)), "more than 40 million pixels"),
        (png(8_000, 8_000, bytes(1 << 20)), "more than 40 million pixels"),
        (png(8, 8, bytes(3)), "no picture"),
        (png(8, 8, bytes(200))[:44], "no picture"),
        (b"", "no picture"),
        (bytes(MOST_BYTES + 1), "more than 32 MiB"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "no picture"),
    ],
    ids=["bomb", "smaller bomb", "short", "cut off", "nothing", "large", "postscript"],
)
def test_bytes_that_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        read_picture(data, "it")


def test_pictures_of_other_modes_become_red_green_and_blue() -> None:
    for mode in ("L", "P", "RGBA", "1"):
        file = io.BytesIO()
        Image.new(mode, (5, 4)).save(file, "PNG")
        assert read_picture(file.getvalue(), "it").mode == "RGB"
