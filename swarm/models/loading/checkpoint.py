"""Where a model's configuration and tensors are: a local folder, or a repository on the Hugging Face hub.

Only the files that are asked for are downloaded, and only safetensors are read: a pickled checkpoint can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from tqdm import tqdm
from transformers import AutoConfig, PretrainedConfig

from swarm.errors import BadCheckpoint, ModelNotFound, UnsupportedModel
from swarm.models.blocks import context_length, text_config
from swarm.types import ModelInfo

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json")
UNIMPORTANT = ("_name_or_path", "transformers_version", "architectures", "torch_dtype", "dtype")
"""Entries of a configuration that do not change what the model computes in a given dtype."""


@dataclass(frozen=True)
class Checkpoint:
    """One model's files. `commit` is set when they come from the hub, `folder` when they are local."""

    name: str
    folder: Path | None = None
    commit: str | None = None
    token: str | None = None

    def path(self, file: str) -> Path:
        """Where a file is on this machine, downloaded if need be. Raises ModelNotFound, BadCheckpoint."""
        if self.folder is None:
            return _download(self.name, file, self.commit, self.token)
        path = self.folder / file
        if not path.is_file():
            raise BadCheckpoint(f"{path} is missing; copy the model's folder again, or pass its name on the hub")
        return path

    def has(self, file: str) -> bool:
        """Whether there is such a file."""
        try:
            return self.path(file).is_file()
        except (BadCheckpoint, _NoSuchFile, _Offline):
            return False

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's configuration. Raises UnsupportedModel, BadCheckpoint."""
        path = self.path("config.json")
        _read_json(path)
        try:
            config = AutoConfig.from_pretrained(path.parent, trust_remote_code=False, local_files_only=True)
        except json.JSONDecodeError as error:
            raise BadCheckpoint(f"{path} is damaged: {error}") from error
        except (ValueError, KeyError, OSError, ImportError) as error:
            raise UnsupportedModel(f"transformers does not know the architecture of {self.name}: {error}") from error
        if not isinstance(config, PretrainedConfig):
            raise UnsupportedModel(f"{path} is not the configuration of a transformers model")
        config._name_or_path = self.name
        return config

    @cached_property
    def files(self) -> Mapping[str, str]:
        """The file of each tensor, by the tensor's name in the checkpoint. Raises BadCheckpoint, ModelNotFound."""
        if self.has(INDEX):
            return _read_index(self.path(INDEX))
        if self.has(SINGLE):
            with open_safetensors(self.path(SINGLE)) as file:
                return dict.fromkeys(file.keys(), SINGLE)
        pickled = next((name for name in PICKLED if self.has(name)), None)
        if pickled is not None:
            raise BadCheckpoint(
                f"{self.name} has only {pickled}, a pickle, which could run any code; convert it to safetensors "
                "(load it with transformers and save_pretrained it again)"
            )
        raise BadCheckpoint(f"{self.name} has neither {SINGLE} nor {INDEX}")

    @cached_property
    def key(self) -> str:
        """The model's identity, 32 hex digits: the commit or, for a folder, the content; and the configuration."""
        content = self.commit or self._content_hash()
        return hashlib.sha256(f"{content}\n{self._config_hash()}".encode()).hexdigest()[:32]

    def info(self) -> ModelInfo:
        """What a peer must know to route over this model. Raises UnsupportedModel, BadCheckpoint, ModelNotFound."""
        text: Any = text_config(self.config)
        return ModelInfo(self.key, self.name, int(text.num_hidden_layers), int(text.hidden_size), context_length(text))

    def _config_hash(self) -> str:
        entries = _read_json(self.path("config.json"))
        important = {name: value for name, value in entries.items() if name not in UNIMPORTANT}
        return hashlib.sha256(json.dumps(important, sort_keys=True).encode()).hexdigest()

    def _content_hash(self) -> str:
        """Over names, types, shapes and values of all tensors; independent of how they are cut into files."""
        digests = {}
        bar = tqdm(total=len(self.files), desc=f"{self.name}: identity", unit="tensor", delay=2.0, leave=False)
        for name in sorted(set(self.files.values())):
            with open_safetensors(self.path(name)) as file:
                for key in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                    digests[key] = _digest(file, key)
                    bar.update()
        bar.close()
        text = "\n".join(f"{key} {digest}" for key, digest in sorted(digests.items()))
        return hashlib.sha256(text.encode()).hexdigest()


class _NoSuchFile(ModelNotFound):
    """The repository is there, the file is not."""


class _Offline(ModelNotFound):
    """The file is not on this machine and the hub was not asked, as HF_HUB_OFFLINE wants it."""


def open_checkpoint(source: str | Path, token: str | None = None, revision: str | None = None) -> Checkpoint:
    """`source`: a local folder, or a name on the hub (`revision`: branch, tag or commit there).

    HF_HOME, HF_HUB_OFFLINE and a saved login are honoured. Raises ModelNotFound with the hub's own words, also for
    gated repositories.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelNotFound(f"{folder} holds no config.json: is it a folder written by save_pretrained?")
        return Checkpoint(str(source), folder=folder)
    if str(source).startswith(("/", ".", "~")):
        raise ModelNotFound(f"there is no folder {source}")
    path = _download(str(source), "config.json", revision, token)
    # In the hub's cache every file is in a folder named after the commit, online and offline alike.
    return Checkpoint(str(source), commit=path.parent.name, token=token)


def open_safetensors(path: Path) -> Any:
    """A file of tensors, as a context manager. Raises BadCheckpoint when it is damaged."""
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        raise BadCheckpoint(f"{path} is damaged ({error}); delete it and fetch it again") from error


def _download(name: str, file: str, revision: str | None, token: str | None) -> Path:
    try:
        return Path(hf_hub_download(name, file, revision=revision, token=token))
    except LocalEntryNotFoundError as error:
        kind = _Offline if constants.HF_HUB_OFFLINE else ModelNotFound
        raise kind(f"{file} of {name} is not on this machine and the hub cannot be reached: {error}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:  # gated repositories are among the former
        raise ModelNotFound(str(error)) from error
    except EntryNotFoundError as error:
        raise _NoSuchFile(f"{name} has no {file}: {error}") from error
    except HFValidationError as error:
        raise ModelNotFound(f"{name!r} is neither a folder on this machine nor a name on the hub: {error}") from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelNotFound(f"{file} of {name} could not be fetched: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise BadCheckpoint(f"{path} is damaged: {error}") from error
    if not isinstance(entries, dict):
        raise BadCheckpoint(f"{path} is damaged: it holds no object")
    return entries


def _read_index(path: Path) -> dict[str, str]:
    files = _read_json(path).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise BadCheckpoint(f"{path} is damaged: it has no weight_map")
    for file in set(files.values()):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise BadCheckpoint(f"{path} names {file!r}, which is no safetensors file beside it")
    return files


def _digest(file: Any, key: str) -> str:
    """A digest of a tensor's type, shape and every byte: a fine-tune may differ from its base in a few numbers."""
    part = file.get_slice(key)
    digest = hashlib.sha256(f"{part.get_dtype()} {list(part.get_shape())}".encode())
    digest.update(file.get_tensor(key).contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
