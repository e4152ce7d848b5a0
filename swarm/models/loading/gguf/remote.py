"""A GGUF file on the hub, looked at before it is downloaded: its architecture is said in its first bytes."""

from __future__ import annotations

from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session

from swarm.errors import BadCheckpoint
from swarm.models.loading.gguf.configuration import check
from swarm.models.loading.gguf.header import architecture_of

BEGINNING = 1 << 16
"""Bytes that are asked for: the architecture is the first entry of all files that llama.cpp's tools write."""
PATIENCE = 10.0
"""Seconds."""


def check_remote(
    repository: str, file: str, revision: str | None, token: str | bool | None, subfolder: str = ""
) -> None:
    """Raises UnsupportedModel, BadCheckpoint for a file that would be refused once it is here.

    Where its beginning cannot be had, nothing is said: the download tells why.
    """
    path = f"{subfolder}/{file}" if subfolder else file
    if constants.HF_HUB_OFFLINE or isinstance(try_to_load_from_cache(repository, path, revision=revision), str):
        return
    beginning = _beginning(repository, path, revision, token)
    if beginning is None:
        return
    try:
        architecture = architecture_of(beginning)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{file} of {repository} is no GGUF file that can be read: {error}") from error
    if architecture is not None:
        check(architecture)


def _beginning(repository: str, path: str, revision: str | None, token: str | bool | None) -> bytes | None:
    try:
        headers = {**build_hf_headers(token=token), "Range": f"bytes=0-{BEGINNING - 1}"}
        with get_session().stream(
            "GET", hf_hub_url(repository, path, revision=revision), headers=headers, timeout=PATIENCE,
            follow_redirects=True,
        ) as response:  # fmt: skip
            if response.status_code not in (200, 206):
                return None
            found = b""
            for piece in response.iter_bytes():
                found += piece
                if len(found) >= BEGINNING:
                    break
            return found[:BEGINNING]
    except (
        Exception
    ):  # of the network, of the hub's client, of a name that is none: the download says it in its own words
        return None
