"""Right servers are not accused: a real model's blocks, in passes of every shape, judged as audits judge."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swarm.client.comparing import Verdict, codec_floor, errors, judge
from swarm.client.integrity import Integrity
from swarm.jobs import compute
from swarm.models.span.load import load_span
from swarm.models.span.model import SpanModel
from swarm.types import Segment, Span
from swarm.wire.codecs import Codec, codec_of, values_of

MODEL = Path(__file__).parents[2] / "models" / "tiny-llama"
SPAN = Span(2, 6)
TOGETHER = 8
"""Sequences whose steps share a pass, as in a server that many use."""
AUDITS = int(os.environ.get("SWARM_HONEST_AUDITS", "10000"))


class Server:
    """Blocks, behind a codec. `pieces`: into how many positions a prompt is cut."""

    def __init__(self, model: SpanModel, codec: Codec) -> None:
        self.model = model
        self.codec = codec
        self._next = 0

    def _pass(self, segments: list[Segment], rows: bytes) -> bytes:
        came = self.codec.decode(self.codec.encode(rows))
        return self.codec.decode(self.codec.encode(bytes(compute(self.model, SPAN, segments, came))))

    def generated(self, texts: list[bytes], prompts: list[int]) -> list[bytes]:
        """What comes of sequences whose prompts come one by one and whose steps share passes, and so do prompts with
        steps of others."""
        size, ids = self.model.row_bytes, range(self._next, self._next + len(texts))
        self._next += len(texts)
        outputs = [b""] * len(texts)
        lengths = [0] * len(texts)
        while any(length * size < len(text) for length, text in zip(lengths, texts, strict=True)):
            segments, rows = [], []
            for index, text in enumerate(texts):
                start = lengths[index]
                if start * size == len(text):
                    continue
                count = prompts[index] if not start else 1
                segments.append(Segment((b"s", ids[index]), start, count))
                rows.append(text[start * size : (start + count) * size])
                lengths[index] += count
            made, begin = self._pass(segments, b"".join(rows)), 0
            for segment in segments:
                outputs[segment.sequence[1] - ids[0]] += made[begin : begin + segment.count * size]
                begin += segment.count * size
        for each in ids:
            self.model.free((b"s", each))
        return outputs

    def replayed(self, text: bytes, piece: int) -> bytes:
        """The same as one prompt, in pieces."""
        size, key = self.model.row_bytes, (b"s", self._next)
        self._next += 1
        outputs, count = b"", len(text) // size
        for start in range(0, count, piece):
            end = min(start + piece, count)
            outputs += self._pass([Segment(key, start, end - start)], text[start * size : end * size])
        self.model.free(key)
        return outputs


def texts(model: Any, dtype: torch.dtype, rng: np.random.Generator) -> list[bytes]:
    """Hidden states before the span, of tokens by chance, of various lengths."""
    made = []
    for _ in range(TOGETHER):
        ids = torch.from_numpy(rng.integers(0, 2048, (1, int(rng.integers(12, 40)))))
        with torch.inference_mode():
            hidden = model(ids, output_hidden_states=True).hidden_states[SPAN.first]
        made.append(hidden[0].to(dtype).contiguous().view(torch.uint8).numpy().tobytes())
    return made


def accused(dtype: str, codec: str, count: int) -> tuple[dict[Verdict, int], float, float]:
    """So many audits: verdicts, the worst window of all, and the noise that was learned."""
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    whole, rng = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32), np.random.default_rng(11)
    model = load_span(MODEL, SPAN, dtype=dtype, progress=False)
    server = Server(model, codec_of(codec, dtype, model.hidden_size))
    integrity, verdicts, worst, made = Integrity(dtype), dict.fromkeys(Verdict, 0), 0.0, 0
    while made < count:
        inputs = texts(whole, getattr(torch, dtype), rng)
        prompts = [int(rng.integers(1, 12)) for _ in inputs]
        for text, outputs in zip(inputs, server.generated(inputs, prompts), strict=True):
            again = server.replayed(text, int(rng.choice([5, 16, 64])))
            came, ours, theirs = (values_of(each, dtype, model.row_bytes) for each in (text, outputs, again))
            assert came is not None and ours is not None and theirs is not None
            floor = codec_floor(came, ours, 4) if codec == "int8" else 0.0
            found = judge(errors(came, ours, theirs), range(len(came)), integrity.noise, floor)
            verdicts[found.verdict] += 1
            worst = max(worst, found.worst)
            if found.verdict is Verdict.PASS:
                integrity.passed(["a"], found.usual, 0.0)
            made += 1
    return verdicts, worst, integrity.noise


NUMBERS = [("float32", "raw"), ("float32", "int8"), ("bfloat16", "raw"), ("bfloat16", "int8")]


@pytest.mark.parametrize(("dtype", "codec"), NUMBERS)
def test_nobody_is_accused_in_a_few_audits(dtype: str, codec: str) -> None:
    verdicts, _, _ = accused(dtype, codec, TOGETHER)
    assert verdicts == {Verdict.PASS: TOGETHER, Verdict.SUSPECT: 0, Verdict.FAIL: 0}


@pytest.mark.soak
@pytest.mark.parametrize(("dtype", "codec"), NUMBERS)
def test_nobody_is_accused_in_ten_thousand_audits(dtype: str, codec: str) -> None:
    """A quarter of them in each kind of numbers; the environment's SWARM_HONEST_AUDITS makes it another number."""
    verdicts, worst, noise = accused(dtype, codec, AUDITS // len(NUMBERS))
    print(f"{dtype} {codec}: {verdicts}, worst {worst:.3%}, noise learned {noise:.3%}")
    assert not verdicts[Verdict.FAIL]
