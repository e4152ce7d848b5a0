"""The types in which GGUF files store numbers, by their numbers in `enum ggml_type`: how many bytes hold how many."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Type:
    """So many `numbers` of a row share a group of so many `bytes`; `dtype`: what single numbers are, in no group."""

    name: str
    numbers: int
    bytes: int
    dtype: torch.dtype | None = None

    def bytes_of(self, count: int) -> int:
        """That so many numbers take."""
        return count // self.numbers * self.bytes


STORED = {
    0: Type("F32", 1, 4, torch.float32), 1: Type("F16", 1, 2, torch.float16), 30: Type("BF16", 1, 2, torch.bfloat16),
    2: Type("Q4_0", 32, 18), 3: Type("Q4_1", 32, 20), 6: Type("Q5_0", 32, 22), 7: Type("Q5_1", 32, 24),
    8: Type("Q8_0", 32, 34), 10: Type("Q2_K", 256, 84), 11: Type("Q3_K", 256, 110), 12: Type("Q4_K", 256, 144),
    13: Type("Q5_K", 256, 176), 14: Type("Q6_K", 256, 210), 16: Type("IQ2_XXS", 256, 66), 17: Type("IQ2_XS", 256, 74),
    18: Type("IQ3_XXS", 256, 98), 19: Type("IQ1_S", 256, 50), 20: Type("IQ4_NL", 32, 18), 21: Type("IQ3_S", 256, 110),
    22: Type("IQ2_S", 256, 82), 23: Type("IQ4_XS", 256, 136), 29: Type("IQ1_M", 256, 56), 39: Type("MXFP4", 32, 17),
}  # fmt: skip
