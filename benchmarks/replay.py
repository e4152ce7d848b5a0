"""How often a text changes when its positions so far are computed anew in one pass, as after a failover."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from benchmarks.results import Cell, Result, output_options, report

KINDS = (("none", "float32"), ("none", "bfloat16"), ("int8", "float32"), ("int4", "float32"), ("int8", "bfloat16"),
         ("int4", "bfloat16"))  # fmt: skip
QUESTIONS = (
    "What is gravity?", "Write a short story about a bee.", "How does a bicycle stay upright?", "List five rivers.",
    "Explain photosynthesis to a child.", "Why is the sky blue?", "What should I cook with eggs and rice?",
    "Describe the city of Paris.",
)  # fmt: skip


@click.command()
@click.option("--tokens", default=48, show_default=True)
@click.option("--questions", default=len(QUESTIONS), show_default=True)
@click.option("--every", default=8, show_default=True, help="A replay before every so manieth token.")
@output_options
def main(tokens: int, questions: int, every: int, as_json: bool, save: bool) -> None:
    """SmolLM2-135M-Instruct, all blocks in one span, greedy: what is said after a replay, and undisturbed."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from swarm.demo.smollm2 import smollm2

    path = smollm2(progress=True)
    tokenizer = AutoTokenizer.from_pretrained(path)
    local = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    rows: list[dict[str, Cell]] = []
    for scheme, dtype in KINDS:
        teller = Teller(path, local, scheme, dtype)
        same, texts, whole = 0, 0, 0
        for question in QUESTIONS[:questions]:
            chat = [{"role": "user", "content": question}]
            ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
            said = teller.say(ids, tokens)
            for at in range(every, tokens, every):
                again = said[:at] + teller.say(ids + said[:at], tokens - at)
                equal = next((n for n, pair in enumerate(zip(said, again, strict=True)) if pair[0] != pair[1]), tokens)
                texts, whole, same = texts + 1, whole + (equal == tokens), same + equal - at
        left = questions * sum(tokens - at for at in range(every, tokens, every))
        rows.append(
            {"weights": scheme, "hidden states": dtype, "replays": texts, "texts unchanged, %": 100 * whole / texts,
             "tokens until a change, %": 100 * same / left}
        )  # fmt: skip
    notes = [f"{questions} answers of {tokens} tokens, a replay before every {every}th"]
    report(Result("replay", "Texts after a replay", rows, "unchanged in float32", notes), as_json, save)


class Teller:
    """A model whose blocks are one span."""

    def __init__(self, path: Path, local: Any, scheme: str, dtype: str) -> None:
        import torch

        from swarm.models.span.load import load_span
        from swarm.types import Span

        self.span = load_span(path, Span(0, 30), quantization=scheme, dtype=dtype, progress=False)
        self.embed, self.norm, self.head = local.model.embed_tokens, local.model.norm, local.lm_head
        self.dtype = getattr(torch, dtype)
        self.number = 0

    def say(self, ids: list[int], count: int) -> list[int]:
        """Greedy: the prompt in one pass, then token after token."""
        self.number += 1
        said, fed, start = [], list(ids), 0
        for _ in range(count):
            token = self._next(fed, start)
            said.append(token)
            start, fed = start + len(fed), [token]
        self.span.free((b"replay", self.number))
        return said

    def _next(self, ids: list[int], start: int) -> int:
        import torch

        from swarm.jobs import Forward
        from swarm.types import Segment

        with torch.inference_mode():
            hidden = self.embed(torch.tensor(ids)).to(self.dtype)
            segments = [Segment((b"replay", self.number), start, len(ids))]
            last = self.span.run(Forward(self.span.span, segments, hidden))[-1:].float()
            return int(self.head(self.norm(last)).argmax())


if __name__ == "__main__":
    main()
