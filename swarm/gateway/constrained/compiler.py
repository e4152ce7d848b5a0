"""Makes grammars into constraints of a model's tokens, within bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from swarm.errors import InvalidInput
from swarm.gateway.constrained.constraint import Constraint, words_of
from swarm.models.texts import Texts

if TYPE_CHECKING:
    from llguidance import LLParserLimits, LLTokenizer

PATIENCE = 0.7
"""Seconds for one grammar: whoever asks hears within a second that it is too much."""
THREADS = 2


class Compiler:
    """Of one model. `vocabulary`: tokens that there are; `ends`: those that end a text."""

    def __init__(self, texts: Texts, vocabulary: int, ends: Collection[int]) -> None:
        self._texts = texts
        self._vocabulary = vocabulary
        self._ends = sorted(ends)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="grammars")
        self._tokens: asyncio.Future[LLTokenizer] | None = None

    async def compile(self, grammar: str, field: str, generated: Sequence[int]) -> Constraint:
        """The constraint, for an answer whose tokens are `generated` so far.

        Raises InvalidInput for a grammar that cannot be met, or that costs too much.
        """
        loop = asyncio.get_running_loop()
        if self._tokens is None:
            # It takes about a second, once, and so does not count for whoever comes first.
            self._tokens = asyncio.ensure_future(loop.run_in_executor(None, self._tokenizer))
        tokens = await asyncio.shield(self._tokens)
        try:
            made = loop.run_in_executor(self._threads, self._compile, tokens, grammar, list(generated))
            return await asyncio.wait_for(made, PATIENCE)
        except TimeoutError:
            words = f"{field}: what the answer must look like takes too long to prepare: make it simpler"
            raise InvalidInput(words, field=field) from None
        except InvalidInput as error:
            raise InvalidInput(f"{field}: {error}", field=field) from error

    def _compile(self, tokens: LLTokenizer, grammar: str, generated: Sequence[int]) -> Constraint:
        from llguidance import LLMatcher

        matcher = LLMatcher(tokens, grammar, log_level=0, limits=_limits())
        if matcher.is_error():
            raise InvalidInput(words_of(matcher))
        constraint = Constraint(matcher, endless=not self._ends)
        for token in generated:
            constraint.take(token)
        if not constraint.over:
            constraint.allowed()
        return constraint

    def _tokenizer(self) -> LLTokenizer:
        try:
            return self._wrapped()
        except Exception as error:  # it says in many ways that a tokenizer is of no kind that it knows
            words = f"answers of this model cannot be held to a form: {type(error).__name__}: {str(error)[:200]}"
            raise InvalidInput(words) from error

    def _wrapped(self) -> LLTokenizer:
        from llguidance import LLTokenizer, TokenizerWrapper

        tokenizer = self._texts.tokenizer
        # Where nothing ends a text, a token that there is not does: it is never chosen.
        ends = self._ends or [self._vocabulary]
        backend = getattr(tokenizer, "backend_tokenizer", None)
        size = self._vocabulary + (not self._ends)
        if backend is not None:
            return LLTokenizer(_plain(backend), n_vocab=max(size, backend.get_vocab_size()), eos_token=ends)
        return LLTokenizer(TokenizerWrapper(_Vocabulary(self._texts, size, ends[0])), eos_token=ends)

    def close(self) -> None:
        """Compile nothing more; what runs is not waited for."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _limits() -> LLParserLimits:
    """What one step may cost: below a tenth of a second where somebody tries. llguidance's own are for one who can
    be blamed."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=50_000, step_lexer_fuel=50_000, step_max_items=20_000, verbose_errors=False)


def _plain(backend: Any) -> str:
    """A fast tokenizer as its file, without what changes its answers' length."""
    state = type(backend).from_str(backend.to_str())
    state.no_padding()
    state.no_truncation()
    return str(state.to_str())


class _Vocabulary:
    """A tokenizer that is no fast one, as llguidance asks for it."""

    bos_token_id = None

    def __init__(self, texts: Texts, size: int, end: int) -> None:
        self.eos_token_id = end
        self.tokens = [texts.piece(token) for token in range(size)]
        self.special_token_ids = list(getattr(texts.tokenizer, "all_special_ids", []))
        self._tokenizer = texts.tokenizer

    def __call__(self, text: Any) -> list[int]:
        text = text.decode(errors="replace") if isinstance(text, bytes) else text
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])
