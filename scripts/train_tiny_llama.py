"""Train a tiny Llama on the English of Python's own documentation.

The text is the prose of the language reference (`pydoc_data.topics`) and of the
standard library's docstrings and comments, so nothing has to be downloaded. The
script extracts that prose, trains a byte-level BPE tokenizer on it, trains the
model on all of it and then on the language reference alone, rounds the weights to
bfloat16, measures the loss of the rounded weights and saves everything that
`transformers` needs to load the model from a folder.

    python scripts/train_tiny_llama.py --out models/tiny-llama
"""

import ast
import json
import math
import platform
import re
import sysconfig
import tokenize
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import click
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from tqdm import trange
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    get_cosine_schedule_with_warmup,
)

END_OF_TEXT = "<|endoftext|>"
VOCABULARY_SIZE = 2048
SHORTEST_PARAGRAPH = 8  # words
CONTEXT_LIMIT = 1024
WARMUP_STEPS = 100
HELD_OUT_EVERY = 20  # one document in this many is kept out of training

# Folders of the standard library whose docstrings are not documentation.
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idle_test", "pydoc_data", "__pycache__"}

# Words that English sentences are held together by and code is not.
FUNCTION_WORDS = frozenset(
    "a an and any are as at be been but by can for from has have if in into is it its may must "  # noqa: SIM905
    "no not of on only or other same should so such than that the their them then there these "
    "they this to two used was were when where which will with without would you".split()
)
TYPOGRAPHY = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "..."})


def docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield the docstrings of a module in source order."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
        if text := ast.get_docstring(node):
            yield text


def block_comments(source: str) -> Iterator[str]:
    """Yield each run of whole-line comments, without the `#` marks."""
    lines = [line.strip() for line in source.splitlines()]
    for is_comment, block in groupby(lines, key=lambda line: line.startswith("#")):
        if is_comment:
            yield "\n".join(line.lstrip("#").strip() for line in block)


def documents() -> Iterator[tuple[str, str]]:
    """Yield the name and raw text of each language topic and library module."""
    for name, text in sorted(topics.items()):
        yield f"topic {name}", text
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS.isdisjoint(relative.parts):
            with tokenize.open(path) as file:
                source = file.read()
            texts = [*docstrings(ast.parse(source)), *block_comments(source)]
            yield f"module {relative.as_posix()}", "\n\n".join(texts)


def clean(paragraph: str) -> str:
    """Join the lines of a paragraph and drop its markup."""
    text = " ".join(paragraph.translate(TYPOGRAPHY).split())
    text = re.sub(r"^([*\-+] |\(?\d+[.)] )+", "", text)  # list marks
    text = re.sub(r" ?\[\d+\]", "", text)  # footnote marks
    text = re.sub(r"\*{1,2}([^*]+)\*{1,2}", r"\1", text)  # emphasis
    text = re.sub(r"[\"'`]+(\w+)[\"'`]+", r"\1", text)  # quotes around one word
    # A sentence that ends in a colon introduces something left out here.
    return re.sub(r"(^|(?<=[.!?]) )[^.!?]*:$", "", text)


def is_prose(text: str) -> bool:
    """Tell whether a cleaned paragraph reads as English sentences."""
    if not re.fullmatch(r"[A-Z][A-Za-z0-9 ,.;:'\"()_!?/-]*[.!?]\"?\)?", text):
        return False
    words = text.lower().split()
    letters = sum(character.isalpha() or character == " " for character in text)
    function_words = sum(word in FUNCTION_WORDS for word in words)
    return len(words) >= SHORTEST_PARAGRAPH and letters >= 0.9 * len(text) and function_words >= 0.25 * len(words)


def prose(text: str, seen: set[str]) -> str:
    """Return the prose paragraphs of a text that are not in `seen`, and add them to it."""
    kept = []
    for paragraph in map(clean, re.split(r"\n\s*\n|\n(?=\s*[*-] )", text)):
        if paragraph not in seen and is_prose(paragraph):
            seen.add(paragraph)
            kept.append(paragraph)
    return "\n\n".join(kept)


def is_held_out(name: str) -> bool:
    """Tell whether the document of this name is kept out of training."""
    return zlib.crc32(name.encode()) % HELD_OUT_EVERY == 0


class Corpus(NamedTuple):
    """Documents of prose: the language reference, the rest of the training text, the held-out text."""

    reference: list[str]
    library: list[str]
    held_out: list[str]


def read_corpus() -> Corpus:
    """Read, filter and split all documents.

    A document is held out by the checksum of its name, so the split does not move
    between Python versions. The held-out documents are filtered last: a paragraph
    that the documentation repeats stays in training only.
    """
    corpus = Corpus([], [], [])
    seen: set[str] = set()
    for name, text in sorted(documents(), key=lambda document: is_held_out(document[0])):
        if paragraphs := prose(text, seen):
            if is_held_out(name):
                corpus.held_out.append(paragraphs)
            elif name.startswith("topic"):
                corpus.reference.append(paragraphs)
            else:
                corpus.library.append(paragraphs)
    return corpus


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT_LIMIT,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Return the token ids of all texts as one stream, each text closed by end-of-text."""
    encodings = tokenizer.backend_tokenizer.encode_batch([text + END_OF_TEXT for text in texts])
    return torch.tensor([token for encoding in encodings for token in encoding.ids])


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return an untrained Llama of 3.5 million parameters."""
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LIMIT,
        initializer_range=0.05,  # the customary 0.02 is for wider models
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def next_token_loss(model: LlamaForCausalLM, windows: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of each window's tokens after its first."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


def fit(
    model: LlamaForCausalLM,
    tokens: torch.Tensor,
    *,
    steps: int,
    batch_size: int,
    context: int,
    learning_rate: float,
) -> None:
    """Train the model on windows drawn at random from a token stream."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    gains = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}],
        lr=learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, steps)
    windows = tokens.unfold(0, context + 1, 1)
    model.train()
    progress = trange(steps, desc="training", unit="step")
    for _ in progress:
        batch = windows[torch.randint(len(windows), (batch_size,))]
        with torch.autocast("cpu", torch.bfloat16):
            loss = next_token_loss(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)


@torch.inference_mode()
def evaluate(model: LlamaForCausalLM, tokens: torch.Tensor, context: int) -> float:
    """Return the mean loss in nats per token over the full windows of a token stream."""
    model.eval()
    windows = tokens.unfold(0, context + 1, context)
    losses = [next_token_loss(model, batch) for batch in windows.split(16)]
    sizes = torch.tensor([len(batch) for batch in windows.split(16)])
    return float((torch.stack(losses) * sizes).sum() / sizes.sum())


@click.command(context_settings={"show_default": True})
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--steps", default=3200, help="Optimizer steps on all of the text.")
@click.option("--reference-steps", default=600, help="Steps after that on the language reference.")
@click.option("--batch-size", default=8, help="Windows per step.")
@click.option("--context", default=256, help="Tokens per window.")
@click.option("--seed", default=0, help="Seed of the weights and of the batches.")
@click.option("--threads", default=1, help="CPU threads.")
def main(out: Path, steps: int, reference_steps: int, batch_size: int, context: int, seed: int, threads: int) -> None:
    """Train a tiny Llama on Python's documentation and save it to OUT."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)

    corpus = read_corpus()
    train_texts = corpus.reference + corpus.library
    tokenizer = train_tokenizer(train_texts)
    train_tokens = encode(tokenizer, train_texts)
    reference_tokens = encode(tokenizer, corpus.reference)
    held_out_tokens = encode(tokenizer, corpus.held_out)
    click.echo(f"{len(train_tokens):,} training and {len(held_out_tokens):,} held-out tokens")

    model = build_model(tokenizer)
    fit(model, train_tokens, steps=steps, batch_size=batch_size, context=context, learning_rate=3e-3)
    # A model this small writes its best English where it knows the text well, so it ends on the best text.
    fit(model, reference_tokens, steps=reference_steps, batch_size=batch_size, context=context, learning_rate=1e-3)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)

    # The losses are those of the weights as saved, after rounding to bfloat16.
    shipped = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32)
    report = {
        "python": platform.python_version(),
        "seed": seed,
        "steps": steps,
        "reference_steps": reference_steps,
        "batch_size": batch_size,
        "context": context,
        "parameters": shipped.num_parameters(),
        "train_tokens": len(train_tokens),
        "reference_tokens": len(reference_tokens),
        "held_out_tokens": len(held_out_tokens),
        "train_loss": round(evaluate(shipped, train_tokens, context), 4),
        "reference_loss": round(evaluate(shipped, reference_tokens, context), 4),
        "held_out_loss": round(evaluate(shipped, held_out_tokens, context), 4),
        "uniform_loss": round(math.log(VOCABULARY_SIZE), 4),
    }
    (out / "training.json").write_text(json.dumps(report, indent=2) + "\n")
    click.echo(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
