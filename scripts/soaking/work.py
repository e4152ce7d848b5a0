"""Generations through a swarm, one after the other, each compared with plain transformers' on the same weights."""

from __future__ import annotations

import random
import statistics
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

WARM = 0.25
"""Of the time; what is held by then is not growth."""


@dataclass
class Work:
    """`local`: the model by plain transformers; `end`: when no further generation is begun, by the monotonic clock."""

    model: Path
    local: Any
    end: float
    right: int = 0
    wrong: int = 0
    tokens: int = 0
    notices: Counter[str] = field(default_factory=Counter)
    longest: float = 0.0
    failed: Counter[str] = field(default_factory=Counter)
    samples: list[tuple[float, float, float]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, seed: int, swarm: Any) -> None:
        """Generate until the end; what escapes is counted."""
        try:
            self.generate(seed, swarm)
        except Exception as error:
            traceback.print_exc()
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self.failed[f"{type(error).__name__}: {error}"[:200]] += 1

    def generate(self, seed: int, swarm: Any) -> None:
        """One after the other, each in another way."""
        import torch

        from swarm import DistributedLlama

        rng = random.Random(seed)
        model = DistributedLlama.from_pretrained(
            str(self.model), swarm=swarm, dtype="float32", progress=False, on_notice=self._noted
        )
        while time.monotonic() < self.end:
            ids = torch.tensor([[rng.randrange(3, 2000) for _ in range(rng.randrange(2, 60))]] * rng.choice((1, 1, 2)))
            options = {"max_new_tokens": rng.randrange(8, 96), "do_sample": False, "pad_token_id": 0}
            options |= rng.choice(({}, {}, {"num_beams": 2}))
            ways = {} if "num_beams" in options or len(ids) > 1 else rng.choice(({}, {"speculation": "ngram"}))
            began = time.monotonic()
            try:
                found = model.generate(ids, attention_mask=torch.ones_like(ids), **options, **ways)
            except Exception as error:
                self._fail(error)
                continue
            took = time.monotonic() - began
            with self._lock:
                right = self.local.generate(ids, attention_mask=torch.ones_like(ids), **options)
                same = torch.equal(found, right)
                self.right += same
                self.wrong += not same
                self.tokens += found.numel() - ids.numel()
                self.longest = max(self.longest, took)
                if not same:
                    print(f"WRONG: {ids.tolist()} {options} {ways}: {found.tolist()}", flush=True)

    def _noted(self, notice: Any) -> None:
        with self._lock:
            self.notices[notice.kind] += 1

    def look(self) -> None:
        """Note what this process holds."""
        me = psutil.Process()
        self.samples.append((me.memory_info().rss, me.num_fds(), me.num_threads()))

    def growth(self, what: int) -> float:
        """Of a number in `samples`, from when it was warm to the end, by medians of a quarter each."""
        values = [sample[what] for sample in self.samples]
        quarter = max(len(values) // 4, 1)
        warm = int(len(values) * WARM)
        return statistics.median(values[-quarter:]) - statistics.median(values[warm : warm + quarter])
