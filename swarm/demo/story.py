"""An answer that goes on when a server is killed in the middle of it, and what that cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from swarm.demo.local_swarm import LocalSwarm
from swarm.models.texts import Detokenizer, Texts, load_tokenizer

if TYPE_CHECKING:
    from swarm.client.session import Notice
    from swarm.types import Route

RULE = "-" * 86


@dataclass
class Run:
    """One generation: its new tokens, and when each came."""

    ids: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Tokens a second, from the first on."""
        return (len(self.times) - 1) / (self.times[-1] - self.times[0]) if len(self.times) > 1 else 0.0

    def longest_wait(self, first: int) -> float:
        """The longest time, in seconds, between two tokens, the earlier of which is at least the `first`-th."""
        return max((after - before for before, after in pairwise(self.times[first - 1 :])), default=0.0)


class Story:
    """Asks a model the same thing three times: of a swarm that loses a server, of one that does not, and on its own."""

    def __init__(self, swarm: LocalSwarm, *, tokens: int, kill_after: int) -> None:
        self.swarm = swarm
        self.tokens = tokens
        self.kill_after = kill_after
        self.texts = Texts(load_tokenizer(swarm.model))
        self.lost: str | None = None
        """Who was killed."""
        self._over = False

    def tell(self, question: str) -> bool:
        """Ask, kill, compare; whether the text was the same each time."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        from swarm.client.model import DistributedModelForCausalLM
        from swarm.client.swarm import connect

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        torch.set_num_threads(1)
        self.prompt = self._prompt(question)
        with connect([self.swarm.peer], host_maddrs=["/ip4/127.0.0.1/tcp/0"]) as joined:
            model = DistributedModelForCausalLM.from_pretrained(
                self.swarm.model, swarm=joined, dtype="float32", on_notice=self._hear, progress=False
            )
            click.secho(f"\n{question}", bold=True)
            failed = self._generate(model, _Teller(self._decode, self._strike_at(model)))
            self._over = True
            click.secho("\n\nthe same once more, undisturbed, and in one process ...", dim=True)
            calm = self._generate(model, _Teller(self._decode))
        local = self._generate(AutoModelForCausalLM.from_pretrained(self.swarm.model, dtype="float32"), _Teller())
        equal = failed.ids == calm.ids == local.ids
        self._conclude(failed, calm, local, equal)
        return equal and self.lost is not None

    def _prompt(self, question: str) -> list[int]:
        chat = [{"role": "user", "content": question}]
        return self.texts.conversation(chat) if self.texts.converses else list(self.texts.tokenizer(question).input_ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.texts.tokenizer.decode(ids, skip_special_tokens=True))

    def _generate(self, model: Any, teller: _Teller) -> Run:
        import torch

        inputs = torch.tensor([self.prompt])
        model.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=self.tokens,
            do_sample=False,
            streamer=teller,
        )
        return teller.run

    def _strike_at(self, model: Any) -> Callable[[Run], None]:
        def strike(run: Run) -> None:
            if len(run.ids) == self.kill_after:
                self._kill_one_of(model.route)

        return strike

    def _kill_one_of(self, route: Route) -> None:
        """SIGKILL to the middle server of the route in use."""
        hop = route.hops[len(route.hops) // 2]
        name = self.swarm.name_of(hop.peer_id)
        click.secho(f"\n[killing {name}, who serves blocks {hop.span} of the route {self._named(route)}]", fg="red")
        self.lost = name
        self.swarm.kill(name)

    def _hear(self, notice: Notice) -> None:
        if self.lost and not self._over and notice.kind == "rerouted" and notice.route is not None:
            click.secho(f"[rerouted: {self._named(notice.route)}]", fg="yellow")

    def _named(self, route: Route) -> str:
        return " → ".join(f"{self.swarm.name_of(hop.peer_id)} {hop.span}" for hop in route.hops)

    def _conclude(self, failed: Run, calm: Run, local: Run, equal: bool) -> None:
        wait = f"{failed.longest_wait(self.kill_after):.2f} s until the next token after the kill"
        if self.lost is None:
            wait = f"nobody was: the answer ended before its token {self.kill_after} (--kill-after)"
        rows = [
            ("one process, no swarm", local, ""),
            ("swarm, undisturbed", calm, ""),
            ("swarm, a server killed", failed, wait),
        ]
        click.echo(f"\n{RULE}")
        for what, run, note in rows:
            click.echo(f"{what:<26}{run.rate:>8.1f} tokens/s   {note}".rstrip())
        verdict = f"equal, token for token ({len(local.ids)})" if equal else "DIFFERENT"
        click.echo(f"{'text of all three':<26}{verdict:>8}\n{RULE}")


class _Teller:
    """A streamer of `generate`: notes when tokens come, shows them if it is given `decode`, and tells `heard`."""

    def __init__(
        self, decode: Callable[[Sequence[int]], str] | None = None, heard: Callable[[Run], None] | None = None
    ) -> None:
        self.run = Run()
        self._decode = decode if heard else None
        self._heard = heard
        self._detokenizer: Detokenizer | None = None
        self._begun = False

    def put(self, value: Any) -> None:
        """Called by the library with the prompt, then with each token."""
        ids = value.flatten().tolist()
        if not self._begun:
            self._begun = True
            self._detokenizer = Detokenizer(self._decode, ids) if self._decode else None
            return
        self.run.ids += ids
        self.run.times.append(time.perf_counter())
        if self._detokenizer is not None:
            self._show("".join(map(self._detokenizer.add, ids)))
        if self._heard is not None:
            self._heard(self.run)

    def end(self) -> None:
        """Called by the library at the end."""
        if self._detokenizer is not None:
            self._show(self._detokenizer.end())

    def _show(self, text: str) -> None:
        click.echo(text, nl=False)


def spans(blocks: int) -> dict[str, str]:
    """Six servers of a model, two for every block: whoever of them is lost, the others have everything."""
    eighths = {"alice": (0, 3), "bob": (3, 6), "carol": (6, 8), "dave": (2, 5), "erin": (4, 8), "frank": (0, 2)}
    return {name: f"{round(first * blocks / 8)}:{round(last * blocks / 8)}" for name, (first, last) in eighths.items()}


def little_model() -> Path | None:
    """The model of 3.5 million parameters that is in the repository, where this is one."""
    folder = Path(__file__).parents[2] / "models" / "tiny-llama"
    return folder if folder.is_dir() else None
