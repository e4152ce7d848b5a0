"""Options that reach a command as one argument."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])
Option = Callable[..., Any]
"""A decorator, as click.option makes them."""


def together(name: str, make: Callable[..., Any], *options: Option) -> Callable[[Function], Function]:
    """Options that reach the command as one argument, `name`: what `make` makes of those that it has parameters for.

    What `make` raises is told as if the command had raised it.
    """
    taken = tuple(inspect.signature(make).parameters)

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            made = make(**{each: kwargs.pop(each) for each in taken})
            return function(*args, **{name: made}, **kwargs)

        decorated: Any = wrapped
        for option in reversed(options):
            decorated = option(decorated)
        return decorated  # type: ignore[no-any-return]

    return decorate
