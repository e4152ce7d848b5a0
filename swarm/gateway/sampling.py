"""Which token comes next: settings, the penalties of the field, and noise that anybody can draw again.

A token is drawn by the Gumbel-max trick: arg max of log p + g, with g = -log(-log u) independent for each token, is a
draw from p (Gumbel, "Statistical Theory of Extreme Values", 1954). u is a function of seed, position and token id, by
the finaliser of SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014), so that
another node goes on with the draws of the one that died.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from swarm.config import SAMPLING
from swarm.errors import InvalidInput
from swarm.wire import swarm_pb2 as pb

if TYPE_CHECKING:
    from swarm.gateway.constrained.constraint import Constraint

MOST_ALTERNATIVES = 20
MOST_BIASES = 1024

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


@dataclass(frozen=True, slots=True)
class Settings:
    """How tokens are chosen; the defaults choose the best one. Zero `top_k`, one `top_p` and so on: not in use."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    biases: tuple[tuple[int, float], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the best token is taken and nothing else looked at."""
        penalties = (self.repetition_penalty - 1.0, self.presence_penalty, self.frequency_penalty)
        return self.temperature == 0.0 and not any(penalties) and not self.biases


def settings_of(sampling: pb.Sampling, recommended: Mapping[str, Any], vocabulary: int) -> Settings:
    """What the asker wishes; what he leaves open is as the model's authors recommend, which was checked at the start.

    Raises InvalidInput.
    """
    values: dict[str, Any] = {}
    for name in (*SAMPLING, "top_k"):
        if sampling.HasField(name):
            values[name] = getattr(sampling, name)
        elif recommended.get(name) is not None:
            values[name] = recommended[name]
    for name, (least, most) in SAMPLING.items():
        if name in values and not (math.isfinite(values[name]) and least <= values[name] <= most):
            raise InvalidInput(f"{name}={values[name]:g} is not between {least:g} and {most:g}", field=name)
    biases = tuple((bias.token, bias.value) for bias in sampling.bias)
    if len(biases) > MOST_BIASES or not all(token < vocabulary and abs(value) <= 100 for token, value in biases):
        words = f"logit_bias: at most {MOST_BIASES}, each of a token of the {vocabulary} and from -100 to 100"
        raise InvalidInput(words, field="logit_bias")
    return Settings(seed=sampling.seed, biases=biases, **values)


class Sampler:
    """Chooses the tokens of one answer. `prompt` and `generated`: token ids so far, which `constraint` knows, too."""

    def __init__(
        self,
        settings: Settings,
        prompt: Sequence[int],
        generated: Sequence[int] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.settings = settings
        self.constraint: Constraint | None = None
        self._position = len(prompt)
        self._seen = set(prompt)
        self._generated: Counter[int] = Counter()
        for token in generated:
            self.take(token)
        self.constraint = constraint

    @property
    def plain(self) -> bool:
        """Whether the best token is taken and nothing else looked at."""
        return self.settings.plain and self.constraint is None

    @property
    def over(self) -> bool:
        """Whether nothing may follow."""
        return self.constraint is not None and self.constraint.over

    def take(self, token: int) -> None:
        """This one is the next."""
        if self.constraint is not None:
            self.constraint.take(token)
        self._position += 1
        self._generated[token] += 1
        self._seen.add(token)

    def choose(self, logits: torch.Tensor) -> int:
        """The next token by its logits `[vocabulary]`, float32. The same for the same settings, position and logits.

        What may not come is out before anything is counted or drawn, so that the noise of a token is the same whatever
        else may come. Raises InvalidInput where nothing may.
        """
        if self.plain:
            return int(logits.argmax())
        scores = self._penalised(logits.clone())
        if self.constraint is None:
            return self._drawn(torch.arange(len(scores)), scores)
        allowed = self.constraint.allowed()
        allowed = allowed[allowed < len(scores)]
        return self._drawn(allowed, scores[allowed])

    def _drawn(self, tokens: torch.Tensor, scores: torch.Tensor) -> int:
        """One of `tokens` `[count]`, by their `scores` `[count]`."""
        if self.settings.temperature == 0.0:
            return int(tokens[scores.argmax()])
        kept, scores = truncate(scores / self.settings.temperature, self.settings)
        tokens = tokens[kept]
        draws = gumbel(self.settings.seed, self._position, tokens.numpy())
        return int(tokens[int(np.argmax(scores.double().numpy() + draws))])

    def _penalised(self, scores: torch.Tensor) -> torch.Tensor:
        settings = self.settings
        if settings.repetition_penalty != 1.0:
            seen = torch.tensor(sorted(self._seen))
            seen = seen[seen < len(scores)]
            held = scores[seen]
            scores[seen] = torch.where(held > 0, held / settings.repetition_penalty, held * settings.repetition_penalty)
        if self._generated and (settings.presence_penalty or settings.frequency_penalty):
            tokens = torch.tensor(list(self._generated))
            counts = torch.tensor(list(self._generated.values()), dtype=scores.dtype)
            scores[tokens] -= settings.presence_penalty + settings.frequency_penalty * counts
        for token, value in settings.biases:
            scores[token] += value
        return scores


def truncate(scores: torch.Tensor, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """The places of those that may be drawn, `[kept]`, and their scores, of `scores` `[count]`.

    The `top_k` best, of them those that make up `top_p` of the probability, of them those at least `min_p` times as
    likely as the best; always the best one.
    """
    count = min(settings.top_k, len(scores)) if settings.top_k else len(scores)
    if count == len(scores) and settings.top_p == 1.0 and settings.min_p == 0.0:
        return torch.arange(len(scores)), scores
    best, tokens = torch.topk(scores, count)
    share = torch.softmax(best, dim=-1)
    kept = torch.cumsum(share, dim=-1) - share < settings.top_p
    if settings.min_p > 0.0:
        kept &= share >= settings.min_p * share[0]
    kept[0] = True
    return tokens[kept], best[kept]


def gumbel(seed: int, position: int, tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """One draw of Gumbel's distribution for each token id at a position: always the same one. float64."""
    with np.errstate(over="ignore"):
        stream = _mixed(_mixed(np.array([seed], np.uint64)) + np.array([position], np.uint64))
        bits = _mixed(stream + tokens.astype(np.uint64) * _GOLDEN)
    uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) / float(1 << 53)
    draws: np.ndarray[Any, Any] = -np.log(-np.log(uniform))
    return draws


def _mixed(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * _MIX[0]
    words = (words ^ (words >> np.uint64(27))) * _MIX[1]
    mixed: np.ndarray[Any, Any] = words ^ (words >> np.uint64(31))
    return mixed


def logprobs(logits: torch.Tensor, token: int, alternatives: int) -> tuple[float, list[tuple[int, float]]]:
    """Of the chosen token, and of the most likely ones, under the model itself: before any penalty or temperature.

    `logits`: `[vocabulary]`, float32.
    """
    shares = torch.log_softmax(logits, dim=-1)
    values, tokens = torch.topk(shares, min(alternatives, MOST_ALTERNATIVES, len(shares)))
    return float(shares[token]), [(int(t), float(v)) for t, v in zip(tokens, values, strict=True)]
