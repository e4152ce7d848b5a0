"""The tokenizer in a GGUF file, with its chat template, as transformers makes it.

`AutoTokenizer` gives the same after reading the file a second time in a way that takes seconds, to choose a class.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer


def read_tokenizer(path: Path) -> Any:
    """Of a file whose header has been read: that makes sure that it is none that could take all memory. Raises in as
    many ways as the library."""
    architecture, vocabulary, settings = get_gguf_tokenizer(str(path))
    backend, more = convert_gguf_tokenizer(architecture, vocabulary)
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=backend, **{**settings, **more})
