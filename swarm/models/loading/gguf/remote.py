"""A GGUF file on the hub, looked at before it is downloaded: its architecture is said in its first bytes."""

from __future__ import annotations

from swarm.errors import BadCheckpoint
from swarm.models.loading.gguf.configuration import check
from swarm.models.loading.gguf.header import architecture_of
from swarm.models.loading.hub import Access, beginning

BEGINNING = 1 << 16
"""Bytes that are asked for: the architecture is the first entry of all files that llama.cpp's tools write."""


def check_remote(repository: str, file: str, how: Access) -> None:
    """Raises UnsupportedModel, BadCheckpoint for a file that would be refused once it is here.

    Where its beginning cannot be had, nothing is said: the download tells why.
    """
    found = beginning(repository, file, how, BEGINNING)
    if found is None:
        return
    try:
        architecture = architecture_of(found)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{file} of {repository} is no GGUF file that can be read: {error}") from error
    if architecture is not None:
        check(architecture)
