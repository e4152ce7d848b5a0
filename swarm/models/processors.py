"""The processor of a model that sees: pictures and text in, what the model takes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from swarm.errors import BadCheckpoint, InvalidInput

if TYPE_CHECKING:
    from swarm.models.loading.checkpoint import Checkpoint


def processor_of(checkpoint: Checkpoint) -> Any:
    """The processor of an opened model. Raises BadCheckpoint, and InvalidInput where it holds no conversation."""
    from transformers import AutoProcessor

    reading = checkpoint.reading
    try:
        how = {"token": reading.token, "revision": reading.revision}
        processor: Any = AutoProcessor.from_pretrained(checkpoint.name, **how)  # type: ignore[no-untyped-call]
    except Exception as error:  # the library says in many ways that a file is not what it expects
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise BadCheckpoint(f"the processor of {checkpoint.name} cannot be loaded: {words}") from error
    if getattr(processor, "image_processor", None) is None:
        raise InvalidInput(f"images: {checkpoint.name} is a model of text alone")
    if getattr(processor, "chat_template", None) is None:
        raise InvalidInput(f"images: {checkpoint.name} has no chat template that says where a picture goes")
    return processor
