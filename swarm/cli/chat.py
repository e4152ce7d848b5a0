"""swarm-chat: talk to a model."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from swarm.cli.common import (
    client_options,
    folders,
    model_options,
    network_config,
    network_options,
    quiet,
    verbosity_options,
)
from swarm.config import ClientConfig
from swarm.errors import ContextTooLong, DaemonFailed, InvalidInput, SwarmError
from swarm.gateway.texts import Growing, Texts, load_tokenizer
from swarm.net.initial_peers import HOW_TO_BEGIN

if TYPE_CHECKING:
    from swarm.client.session import Notice
    from swarm.models.checkpoint import Checkpoint

LONGEST = 1024
"""Tokens of an answer, where neither the user nor the model's authors say how many."""
WARNING = "Whoever serves blocks on the route can read what you type and what the model answers."


@dataclass(frozen=True, slots=True)
class Wishes:
    """How to answer; None leaves it to the model's own generation settings."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    seed: int | None = None
    system: str | None = None

    def sampling(self) -> dict[str, Any]:
        """The options of `generate` that choose among tokens."""
        if self.temperature is None:
            return {}
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", shell_complete=folders)
@network_options
@click.option("--max-new-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens of an answer at most.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0),
    help="0 always takes the best token; by default as the model's authors recommend.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Makes answers that are drawn by chance repeatable.")
@click.option("--system", metavar="TEXT", help="What the model is told before the conversation.")
@client_options
@model_options
@verbosity_options
def main(
    model: str,
    initial_peers: tuple[str, ...],
    host_maddrs: tuple[str, ...],
    announce_maddrs: tuple[str, ...],
    max_new_tokens: int | None,
    temperature: float | None,
    seed: int | None,
    system: str | None,
    dtype: str,
    revision: str | None,
    token: str | None,
    client: ClientConfig,
) -> None:
    """Talk to MODEL, a name on the Hugging Face hub or a folder, whose blocks others serve.

    A model with a chat template holds a conversation; any other goes on with what is typed, line by line.

    Ctrl-C stops an answer, Ctrl-D leaves. In a pipe each line is a prompt; answers go to stdout, all else to stderr.

    Exit codes: 0 left, 1 an error that is printed, 2 wrong usage, 130 stopped by Ctrl-C in a pipe.
    """
    network = network_config(initial_peers, host_maddrs, announce_maddrs)
    if not network.initial_peers:
        raise InvalidInput(HOW_TO_BEGIN)
    screen = Screen(talkative=not quiet())
    calm_logging()
    from swarm.client.swarm import connect
    from swarm.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(model, token, revision)
    speech = Speech(load_tokenizer(model, token, revision), system)
    given = {"host_maddrs": tuple(host_maddrs), "announce_maddrs": tuple(announce_maddrs)}
    with connect(network.initial_peers, **{name: value for name, value in given.items() if value}) as swarm:
        loading = {"swarm": swarm, "dtype": dtype, "token": token, "revision": revision, **asdict(client)}
        loaded = load_model(model, checkpoint, screen, loading)
        screen.note(WARNING, always=True)
        talk(Chat(loaded, speech, Wishes(max_new_tokens, temperature, seed, system), screen), screen)


def calm_logging() -> None:
    """What the user should see of routes comes as notices; the log would say it twice, in the middle of a sentence."""
    if logging.getLogger("swarm").level > logging.DEBUG:
        logging.getLogger("swarm").setLevel(logging.ERROR)
        logging.getLogger("transformers").setLevel(logging.ERROR)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def load_model(model: str, checkpoint: Checkpoint, screen: Screen, options: dict[str, Any]) -> Any:
    """The part of the model that runs here. Raises what `from_pretrained` raises."""
    from swarm.client.model import DistributedModelForCausalLM

    screen.note(f"{checkpoint.name}: loading what is computed here")
    return DistributedModelForCausalLM.from_pretrained(
        model, progress=screen.talkative and sys.stderr.isatty(), on_notice=screen.hear, **options
    )


def talk(chat: Chat, screen: Screen) -> None:
    """Answer what is typed, until there is no more. Raises SwarmError: in a pipe any, else what cannot be mended."""
    terminal = sys.stdin.isatty()
    for text in lines(terminal):
        try:
            chat.answer(text)
        except KeyboardInterrupt:
            screen.end_line()
            if not terminal:
                sys.exit(130)
        except SwarmError as error:
            screen.end_line()
            if not terminal or isinstance(error, DaemonFailed):
                raise
            screen.note(f"error: {error}", always=True)


def lines(terminal: bool) -> Iterator[str]:
    """What is typed, or piped in, without empty lines."""
    while True:
        try:
            line = _typed() if terminal else sys.stdin.readline()
        except KeyboardInterrupt:
            if not terminal:
                sys.exit(130)
            click.echo()
            continue
        except EOFError:
            click.echo()
            return
        if not line:
            return
        if line.strip():
            yield line.rstrip("\r\n")


def _typed() -> str:
    """A line from a terminal, with the line editor where there is one; ends with a newline. Raises EOFError."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - `input` uses it once it is there
    return input("> ") + "\n"


# ---- what is shown ---------------------------------------------------------------------------------------------


class Screen:
    """Answers on stdout; on stderr, each on a line of its own, what happens meanwhile. For any thread."""

    def __init__(self, *, talkative: bool = True) -> None:
        self.talkative = talkative
        self._lock = threading.RLock()
        self._inside = False

    def write(self, text: str) -> None:
        """A part of an answer."""
        with self._lock:
            click.echo(text, nl=False)
            sys.stdout.flush()
            self._inside = not text.endswith("\n") if text else self._inside

    def end_line(self) -> None:
        """Whatever comes next begins a line."""
        with self._lock:
            if self._inside:
                self.write("\n")

    def note(self, text: str, *, always: bool = False) -> None:
        """Something that is no answer; with -q only what is said `always`."""
        if not (self.talkative or always):
            return
        with self._lock:
            if self._inside and sys.stdout.isatty():
                self.write("\n")
            click.secho(f"[{text}]", dim=True, err=True)

    def hear(self, notice: Notice) -> None:
        """A route, a reroute, or waiting."""
        text = notice.text if notice.kind == "waiting" else f"{notice.kind} {notice.text}"
        self.note(text, always=notice.kind == "waiting")


class Teller:
    """A streamer of `generate`: hands on text as soon as its characters are whole, and notes when tokens came."""

    def __init__(self, decode: Callable[[Sequence[int]], str], write: Callable[[str], None]) -> None:
        self.decode = decode
        self.write = write
        self.text = ""
        self.times = [time.perf_counter()]
        self._growing: Growing | None = None

    def put(self, value: Any) -> None:
        """Called by the library with the prompt, then with every token."""
        ids = value.flatten().tolist()
        if self._growing is None:
            self._growing = Growing(self.decode, ids)
            return
        self.times.append(time.perf_counter())
        for token in ids:
            self._tell(self._growing.add(token))

    def end(self) -> None:
        """Called by the library at the end."""
        if self._growing is not None:
            self._tell(self._growing.end())

    def _tell(self, text: str) -> None:
        if text:
            self.text += text
            self.write(text)

    def speed(self) -> str:
        """How many tokens came, and how fast."""
        count = len(self.times) - 1
        if count == 0:
            return "no tokens"
        first, rest = self.times[1] - self.times[0], self.times[-1] - self.times[1]
        rate = f"{(count - 1) / rest:.1f} tokens/s, " if count > 1 and rest > 0 else ""
        return f"{count} token{'s' * (count > 1)}, {rate}{first:.2f} s to the first"


# ---- what is said ----------------------------------------------------------------------------------------------


class Speech:
    """From what was said to token ids: a conversation where there is a template for one, else text that goes on.

    Raises InvalidInput for a system prompt that has no place.
    """

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.texts = Texts(tokenizer)
        self.templated = self.texts.converses
        self.messages: list[dict[str, str]] = []
        if system is not None and not self.templated:
            raise InvalidInput("this model has no chat template, and so no place for --system")
        if system is not None:
            self.messages.append({"role": "system", "content": system})

    def ids(self, text: str) -> list[int]:
        """The prompt that ends with `text`. Raises InvalidInput when the template refuses it."""
        if not self.templated:
            return list(self.tokenizer(text)["input_ids"])
        return self.texts.conversation([*self.messages, {"role": "user", "content": text}])

    def keep(self, text: str, answer: str) -> None:
        """Both belong to the conversation from now on."""
        if self.templated:
            self.messages += [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def unchanged(known: Sequence[int], ids: Sequence[int]) -> int:
    """How many of the first `known` tokens the prompt `ids` begins with; at least its last has to be computed."""
    most = min(len(known), len(ids) - 1)
    return next((i for i in range(most) if known[i] != ids[i]), most)


class Chat:
    """A conversation with a model, and the cache of what has been computed of it."""

    def __init__(self, model: Any, speech: Speech, wishes: Wishes, screen: Screen) -> None:
        self.model = model
        self.speech = speech
        self.wishes = wishes
        self.screen = screen
        self.cache: Any = None
        self.known: list[int] = []
        if wishes.seed is not None:
            import torch

            torch.manual_seed(wishes.seed)

    def answer(self, text: str) -> None:
        """Answer on the screen. A failure, or Ctrl-C, frees what servers hold; what was said till then is kept.

        Raises SwarmError, after which it is as if `text` had not been said; KeyboardInterrupt.
        """
        ids = self.speech.ids(text)
        teller = Teller(self.speech.texts.decode, self.screen.write)
        try:
            self._generate(ids, teller)
        except KeyboardInterrupt:
            self.forget()
            self.speech.keep(text, teller.text)
            raise
        except BaseException:
            self.forget()
            raise
        self.speech.keep(text, teller.text)
        self.screen.end_line()
        self.screen.note(teller.speed())

    def _generate(self, ids: list[int], teller: Teller) -> None:
        import torch

        new = self._new_tokens(len(ids))
        prompt = torch.tensor([ids])
        result = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=new,
            past_key_values=self._reuse(ids),
            return_dict_in_generate=True,
            streamer=teller,
            **self.wishes.sampling(),
        )
        if not self.speech.templated:
            self.forget()
            return
        self.cache = result.past_key_values
        self.known = result.sequences[0, : self.cache.get_seq_length()].tolist()

    def _new_tokens(self, prompt: int) -> int:
        """As many as were asked for, as far as the model's context has room. Raises ContextTooLong."""
        wanted = self.wishes.max_new_tokens or self.model.generation_config.max_new_tokens or LONGEST
        limit = self.model.context_length
        if limit is None or prompt <= limit:
            return wanted if limit is None else min(wanted, limit - prompt + 1)
        raise ContextTooLong(f"{prompt} tokens have been said, more than the model's {limit}: begin a new conversation")

    def _reuse(self, ids: list[int]) -> Any:
        """The cache of the last turn, cut to what the prompt begins with; None where it is of no use."""
        same = unchanged(self.known, ids)
        if self.cache is None or same == 0 or (same < len(self.known) and self.model._is_stateful):
            self.forget()
        elif same < len(self.known):
            self.cache.crop(same - len(self.known))
        return self.cache

    def forget(self) -> None:
        """Free the cache, here and at the servers."""
        self.cache, self.known = None, []


if __name__ == "__main__":
    main()
