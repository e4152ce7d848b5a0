"""What the fields of a request may hold, and what is said where they hold something else: the words of the API."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

MOST_TOKENS = (1 << 31) - 1
MOST_CHOICES = 16
MOST_INPUTS = 256
"""Texts that are made into vectors at a time."""
MOST_BIASES = 1024
MOST_STOPS = 16
LONGEST_STOP = 256


class Fields(BaseModel):
    """Fields of a request. null stands for a field that is left out; one that there is not is refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _leave_out(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


def _whole(value: Any) -> Any:
    """5.0 is a whole number in JSON."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def whole(least: int, most: int, words: str | None = None) -> Any:
    """A field for a whole number."""
    return Annotated[int, BeforeValidator(_whole), Field(strict=True, ge=least, le=most, description=words)]


def number(least: float, most: float) -> Any:
    """A field for a number."""
    return Annotated[float, Field(strict=True, ge=least, le=most, allow_inf_nan=False)]


YesNo = Annotated[bool, Field(strict=True)]
Unavailable = Annotated[Any, Field(description="Not available.")]


def _checked(check: Callable[[Any], str | None]) -> BeforeValidator:
    """Refuses what `check` finds words for."""

    def validate(value: Any) -> Any:
        words = check(value)
        if words is not None:
            raise ValueError(words)
        return value

    return BeforeValidator(validate)


def _about_inputs(value: Any) -> str | None:
    return _about_prompt(value, MOST_INPUTS)


def _about_prompt(value: Any, most: int = MOST_CHOICES) -> str | None:
    if isinstance(value, str):
        return None
    if not isinstance(value, list) or not value:
        return "a text, a list of texts, a list of token ids or a list of such lists is needed, none of them empty"
    if all(isinstance(each, str) for each in value):
        return None if len(value) <= most else f"at most {most} at a time"
    if all(isinstance(each, list) for each in value):
        if len(value) > most:
            return f"at most {most} at a time"
        return next(filter(None, map(_about_tokens, value)), None)
    return _about_tokens(value)


def _about_tokens(value: Sequence[Any]) -> str | None:
    if not value:
        return "a list of token ids has at least one"
    wrong = [each for each in value if isinstance(each, bool) or not isinstance(each, int)]
    if wrong:
        return f"{_shown(wrong[0])} is neither a text nor a token id, beside what is there with it"
    outside = [each for each in value if not 0 <= each <= MOST_TOKENS]
    return f"{_shown(outside[0])} is no token id" if outside else None


def _about_stop(value: Any) -> str | None:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        return "a text or a list of texts is needed"
    if len(stops) > MOST_STOPS or not all(0 < len(stop) <= LONGEST_STOP for stop in stops):
        return f"at most {MOST_STOPS} texts, each of 1 to {LONGEST_STOP} characters"
    return None


def _about_biases(value: Any) -> str | None:
    if not isinstance(value, dict) or len(value) > MOST_BIASES:
        return f"an object of at most {MOST_BIASES} token ids is needed, each with a number from -100 to 100"
    for token, bias in value.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10 and int(token) <= MOST_TOKENS):
            return f"{_shown(token)} is no token id"
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            return f"{_shown(bias)}, of token {token}, is no number from -100 to 100"
    return None


def _about_tool_choice(value: Any) -> str | None:
    known = isinstance(value, dict) or value in ("none", "auto", "required")
    return None if known else "none, auto, required or a tool is needed"


def _about_items(value: Any) -> str | None:
    known = isinstance(value, str) or (isinstance(value, list) and all(isinstance(each, dict) for each in value))
    return None if known else "a text, or a list of objects is needed"


def _about_schema(value: Any) -> str | None:
    return None if isinstance(value, dict | str) else "a schema is an object, or a text with one"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


Tokens = list[Annotated[int, Field(ge=0, le=MOST_TOKENS)]]
Prompt = Annotated[str | Tokens | list[str] | list[Tokens], _checked(_about_prompt)]
Inputs = Annotated[str | Tokens | list[str] | list[Tokens], _checked(_about_inputs)]
Stop = Annotated[str | list[str], _checked(_about_stop)]
ToolChoice = Annotated[str | dict[str, Any], _checked(_about_tool_choice)]
Items = Annotated[str | list[dict[str, Any]], _checked(_about_items)]
Schema = Annotated[dict[str, Any] | str, _checked(_about_schema)]
Biases = Annotated[dict[str, float], _checked(_about_biases)]


# ---- words --------------------------------------------------------------------------------------------------------

TYPES = {
    "int": "must be a whole number",
    "float": "must be a number",
    "finite": "must be a finite number",
    "bool": "must be true or false",
    "string": "must be a text",
    "list": "must be a list",
    "dict": "must be an object",
    "model": "must be an object",
}
"""What a value must be, by the first word of the validator's name for what it is not."""


def words_of(error: Mapping[str, Any]) -> tuple[str, str | None]:
    """What is the matter, by an error of pydantic's, and the field that it is in."""
    place = [part for part in error["loc"] if part != "body"]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")
    return f"{path or 'the body'} {_matter(error)}"[:500], str(place[0]) if place else None


def _matter(error: Mapping[str, Any]) -> str:
    kind, context = str(error["type"]), error.get("ctx", {})
    match kind:
        case "missing":
            return "is needed"
        case "extra_forbidden":
            return "is not a field of this call"
        case "value_error":
            return f"is not right: {context['error']}"
        case "greater_than_equal":
            return f"must be at least {context['ge']:g}"
        case "less_than_equal":
            return f"must be at most {_round(context['le'])}"
        case "too_short":
            return f"must have at least {context['min_length']}"
        case "too_long":
            return f"must have at most {context['max_length']}"
        case "literal_error":
            return f"must be {context['expected']}"
    return TYPES.get(kind.partition("_")[0], "is not right")


def _round(value: float) -> str:
    return f"{value:g}" if math.fabs(value) < 1e6 else str(value)
