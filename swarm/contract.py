"""What two peers must agree on for a hidden state to mean the same to both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from swarm.span import Span, parted

FINGERPRINT_BYTES = 8
"""Of a block's sha256, as it is announced and asked for; a server tells the whole of it when a session opens."""
UNQUANTIZED = "none"


@dataclass(frozen=True, slots=True)
class Contract:
    """What is computed: which blocks of which model, with which weights, in which numbers.

    `model`: key; `fingerprints`: one a block, the sha256 of its tensors or its beginning, or none if any weights will
    do; `adapters`: hex digests of the adapters that are applied, in order; `row_bytes`: bytes of one position's hidden
    state; `hidden_size` and `row_bytes` are 0 where they are not known yet. `places`: integers behind each hidden state
    that say where its position stands; who offers takes as many, or fewer. `joined`: runs of blocks of `span` that hand
    each other more than hidden states, so that nobody else can compute a part of one; who asks need not know them.
    """

    model: str
    span: Span
    fingerprints: tuple[bytes, ...] = ()
    dtype: str = "float32"
    quantization: str = UNQUANTIZED
    adapters: tuple[str, ...] = ()
    hidden_size: int = 0
    row_bytes: int = 0
    places: int = 0
    joined: tuple[Span, ...] = ()

    def on(self, span: Span) -> Contract:
        """The same on other blocks: fingerprints are kept if those of all blocks of `span` are known."""
        begin = self.span.first
        known = self.span.covers(span) and len(self.fingerprints) == len(self.span)
        prints = self.fingerprints[span.first - begin : span.last - begin] if known else ()
        whole = tuple(run for run in self.joined if span.covers(run))
        return replace(self, span=span, fingerprints=prints, joined=whole)

    @property
    def announced(self) -> Contract:
        """The same with fingerprints as short as they are announced and asked for."""
        return replace(self, fingerprints=tuple(whole[:FINGERPRINT_BYTES] for whole in self.fingerprints))

    @property
    def numbers(self) -> str:
        """How it is computed, in words: the dtype, and what changes the numbers beside it."""
        quantized = "" if self.quantization == UNQUANTIZED else f", quantized to {self.quantization}"
        return self.dtype + quantized + (f", with {len(self.adapters)} adapters" if self.adapters else "")

    def difference(self, asked: Contract) -> str | None:
        """Why whoever offers this contract cannot compute what is `asked`, said of the offerer; None: it can.

        Fewer blocks may be asked for than are offered. Fingerprints are compared as far as both have them.
        """
        if self.model != asked.model or not self.span.covers(asked.span):
            return f"hosts blocks {self.span} of model {self.model[:12]}, not {asked.span} of {asked.model[:12]}"
        if self.hidden_size and asked.hidden_size and self.hidden_size != asked.hidden_size:
            return f"computes with hidden size {self.hidden_size}, not {asked.hidden_size}"
        if self.numbers != asked.numbers:
            return f"computes in {self.numbers}, not in {asked.numbers}"
        if self.adapters != asked.adapters:
            return "applies other adapters"
        if self.row_bytes and asked.row_bytes and self.row_bytes != asked.row_bytes:
            return f"computes with {self.row_bytes} bytes a position, not {asked.row_bytes}"
        if (run := parted(asked.span, self.joined)) is not None:
            return together(run)
        if asked.places > self.places:
            return without_places(self.places, asked.places)
        other = _unlike(self.on(asked.span).fingerprints, asked.fingerprints)
        if other:
            blocks = ", ".join(str(asked.span.first + place) for place in other)
            return f"has other weights in blocks {blocks}"
        return None


def together(run: Span) -> str:
    """In words, why blocks cannot be parted."""
    return f"blocks {run} must stay together: they hand each other more than hidden states"


def without_places(offered: int, asked: int) -> str:
    """In words, why who takes so many places a position cannot compute what is asked."""
    takes = f"takes {offered} numbers of its own a position" if offered else "counts positions one by one"
    return f"{takes}, and {asked} are needed for these position_ids"


def _unlike(ours: Sequence[bytes], theirs: Sequence[bytes]) -> list[int]:
    """The places at which fingerprints differ within what both have of them; none where one side has none."""
    pairs = zip(ours, theirs, strict=False)
    return [place for place, (one, other) in enumerate(pairs) if not (one.startswith(other) or other.startswith(one))]
