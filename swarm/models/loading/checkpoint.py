"""Where a model's configuration and tensors are: a local folder, or a repository on the Hugging Face hub.

Only the files that are asked for are downloaded, and only safetensors are read: a pickled checkpoint can run code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from tqdm import tqdm
from transformers import AutoConfig, PretrainedConfig

from swarm.errors import BadCheckpoint, InvalidInput, ModelNotFound, UnsupportedModel
from swarm.models.blocks import context_length, text_config
from swarm.models.loading.fetched import FetchedTensors, header_of
from swarm.models.loading.files import ADAPTER, Picked, pick
from swarm.models.loading.form import Form
from swarm.models.loading.gguf.file import part_names
from swarm.models.loading.gguf.model import GgufModel
from swarm.models.loading.gguf.remote import check_remote
from swarm.models.loading.hub import Access, HubFiles, NoSuchFile, Offline, download, is_public
from swarm.models.loading.identity import differences, digest
from swarm.models.loading.joined import joined_blocks
from swarm.models.loading.layouts.choose import dense_dtype, layout_of, settings_of, with_settings
from swarm.models.loading.layouts.stored import Combined
from swarm.models.loading.safetensors import NAMES, SafetensorsTensors, read_header
from swarm.models.loading.tensors import Tensors
from swarm.types import ModelInfo, Span

HASHED = 1 << 22
"""Numbers that are hashed at once."""


@dataclass(frozen=True)
class Checkpoint:
    """One model's files. `commit` is set when they come from the hub, `folder` when they are local; `name` ends with
    that of a GGUF file, where the model is in one. `form`: as what they are read."""

    name: str
    folder: Path | None = None
    commit: str | None = None
    reading: Access = field(default_factory=Access)
    form: Form = Form.TEXT

    def read_as(self, form: Form) -> Checkpoint:
        """The same as a model of another form."""
        twin = replace(self, form=form)
        vars(twin)["config"] = self.config
        return twin

    def path(self, file: str) -> Path:
        """Where a file is on this machine, downloaded if need be. Raises ModelNotFound, BadCheckpoint."""
        if self.folder is None:
            return download(self._repository, file, replace(self.reading, revision=self.commit))
        path = self.folder / self.reading.subfolder / file
        if not path.is_file():
            raise BadCheckpoint(f"{path} is missing; copy the model's folder again, or pass its name on the hub")
        return path

    def has(self, file: str) -> bool:
        """Whether there is such a file; those of tensors are not downloaded for it."""
        if self._hub is not None and not file.endswith(".json"):
            return self._hub.has(file)
        try:
            return self.path(file).is_file()
        except (BadCheckpoint, NoSuchFile, Offline):
            return False

    @property
    def _repository(self) -> str:
        """The name without that of a GGUF file."""
        return self.name.removesuffix(f"/{self.reading.gguf_file}")

    @cached_property
    def gguf(self) -> GgufModel | None:
        """The model in a GGUF file, where it is in one. Raises BadCheckpoint, UnsupportedModel, ModelNotFound."""
        file = self.reading.gguf_file
        return None if file is None else GgufModel(file, self.path)

    @cached_property
    def config(self) -> PretrainedConfig:
        """The model's configuration. Raises UnsupportedModel, BadCheckpoint."""
        config = self._config() if self.gguf is None else self.gguf.config
        config._name_or_path = self.name
        return config

    def _config(self) -> PretrainedConfig:
        path = self.path("config.json")
        _read_json(path)
        try:
            config = AutoConfig.from_pretrained(path.parent, trust_remote_code=False, local_files_only=True)
        except (json.JSONDecodeError, StrictDataclassError, TypeError, AttributeError) as error:
            raise BadCheckpoint(f"{path} is damaged: {error}") from error
        except (ValueError, KeyError, OSError, ImportError) as error:
            raise UnsupportedModel(f"transformers does not know the architecture of {self.name}: {error}") from error
        if not isinstance(config, PretrainedConfig):
            raise UnsupportedModel(f"{path} is not the configuration of a transformers model")
        return config

    def with_config(self, config: PretrainedConfig) -> Checkpoint:
        """The same with another configuration. Raises InvalidInput where that would compute something else.

        Servers compute as the checkpoint says: only what is given out may differ.
        """
        if differing := differences(self.config, config):
            raise InvalidInput(
                f"config: {', '.join(differing)} differ from the checkpoint's, by which the servers compute; "
                "save a checkpoint with these values and serve that"
            )
        other = replace(self)
        vars(other)["config"] = with_settings(config, settings_of(self.config))
        return other

    @cached_property
    def picked(self) -> Picked:
        """The file that the tensors are in, or that says which are. Raises BadCheckpoint, ModelNotFound."""
        if self.has(ADAPTER):
            raise BadCheckpoint(
                f"{self.name} has an adapter ({ADAPTER}), which transformers would put into the model: "
                "merge it into the weights and save that, or remove it"
            )
        named = getattr(self.config, "transformers_weights", None)
        return pick(self.has, self.name, self.reading.variant, named)

    @cached_property
    def files(self) -> Mapping[str, str]:
        """The file of each tensor, by the tensor's name in the checkpoint. Raises BadCheckpoint, ModelNotFound."""
        if not self.picked.sharded:
            return dict.fromkeys(self._names(self.picked.file), self.picked.file)
        files = dict(_read_index(self.path(self.picked.file)))
        # The library takes all that is in the files, and of what is in two of them the last; the index only names them.
        there = [file for file in sorted(set(files.values())) if self.folder is not None and self.has(file)]
        return files | {name: file for file in there for name in self._names(file)}

    def _names(self, file: str) -> list[str]:
        if self._hub is not None:
            return list(header_of(self._hub, file))
        return list(read_header(self.path(file)))

    @cached_property
    def _hub(self) -> HubFiles | None:
        return None if self.commit is None else HubFiles(self.name, self.commit, self.reading)

    @cached_property
    def stored(self) -> SafetensorsTensors:
        """The tensors as they are in the files. Raises BadCheckpoint, ModelNotFound."""
        return SafetensorsTensors(self.files, self.path) if self._hub is None else FetchedTensors(self.files, self._hub)

    def fetch(self, parts: Mapping[str, Collection[str]], progress: bool = True) -> None:
        """Have tensors on this machine, several at a time, before they are read; from the hub, no others are fetched.

        `parts`: their names in the model, by what is shown while they are fetched. Raises BadCheckpoint, ModelNotFound.
        """
        if self.gguf is None and isinstance(self.stored, FetchedTensors):
            self.stored.fetch(
                {part: [each for name in names for each in self._made_of(name)] for part, names in parts.items()},
                progress,
            )

    def _made_of(self, name: str) -> Sequence[str]:
        """The stored tensors that one of the model is made of."""
        return self.tensors.parts(name) if isinstance(self.tensors, Combined) else [name]

    def watch(self, name: str) -> Callable[[], None]:
        """A check that raises BadCheckpoint where the files of a tensor are no longer what they are now. Those of a
        commit do not change."""
        if self.folder is None:
            return lambda: None
        if self.gguf is None:
            files = {self.files[each] for each in self._made_of(name)}
        else:
            files = set(part_names(str(self.reading.gguf_file)))
        known = {path: _stamp(path) for path in map(self.path, files)}

        def check() -> None:
            if changed := next((path for path, stamp in known.items() if _stamp(path) != stamp), None):
                raise BadCheckpoint(f"{changed} has changed since the model was loaded; load the model again")

        return check

    @cached_property
    def tensors(self) -> Tensors:
        """What is in the files, by the names of the model. Raises BadCheckpoint, ModelNotFound, UnsupportedModel."""
        return layout_of(self.config, self.stored) if self.gguf is None else self.gguf.tensors

    @property
    def is_public(self) -> bool:
        """Whether everybody may have it from the hub. Asks the hub, without a token."""
        how = replace(self.reading, revision=self.commit)
        return self.commit is not None and is_public(self._repository, self.reading.gguf_file or "config.json", how)

    @property
    def quantized(self) -> bool:
        """Whether its authors have quantized it."""
        return settings_of(self.config) is not None if self.gguf is None else self.gguf.quantized

    @cached_property
    def dtype(self) -> torch.dtype:
        """What the tensors are in, as the library finds it where the configuration does not say."""
        if self.gguf is not None:
            return self.gguf.dtype
        if self.quantized:
            return dense_dtype(self.config)
        if self.picked.sharded:
            index = self.path(self.picked.file)
            said = (_read_json(index).get("metadata") or {}).get("dtype")
            if isinstance(found := getattr(torch, str(said), None), torch.dtype):
                return found
        first = min(self.files.values(), default=None)
        found = [self.stored.dtype(name) for name, file in sorted(self.files.items()) if file == first]
        return next((dtype for dtype in found if dtype.is_floating_point), torch.float32)

    @cached_property
    def key(self) -> str:
        """The model's identity, 32 hex digits: the commit or, for a folder, the content; and the configuration."""
        content = self._of_commit() or self._content_hash()
        settings = json.dumps(settings_of(self.config), sort_keys=True, default=str) if self.quantized else ""
        return hashlib.sha256(f"{content}\n{digest(self.config)}{settings}".encode()).hexdigest()[:32]

    def _of_commit(self) -> str | None:
        """The commit and, where they are not the usual ones, which of its files."""
        chosen = [part for part in (self.reading.subfolder, self.reading.variant, self.reading.gguf_file) if part]
        return None if self.commit is None else "/".join([self.commit, *chosen])

    @cached_property
    def joined(self) -> tuple[Span, ...]:
        """Runs of blocks that must stay together, by the configuration. Raises UnsupportedModel."""
        return joined_blocks(self.config, self.form)

    def info(self) -> ModelInfo:
        """What a peer must know to route over this model. Raises UnsupportedModel, BadCheckpoint, ModelNotFound."""
        text: Any = text_config(self.config)
        return ModelInfo(self.key, self.name, int(text.num_hidden_layers), int(text.hidden_size), context_length(text))

    def _content_hash(self) -> str:
        """Over names, types, shapes and values of all tensors; independent of how they are cut into files."""
        if self.gguf is not None:
            return self.gguf.content(self.name)
        bar = tqdm(
            sorted(self.files, key=self.files.__getitem__),
            desc=f"{self.name}: identity",
            unit="tensor",
            delay=2.0,
            leave=False,
            disable=None,
        )
        digests = {name: _digest(self.stored, name) for name in bar}
        text = "\n".join(f"{key} {digest}" for key, digest in sorted(digests.items()))
        return hashlib.sha256(text.encode()).hexdigest()


def open_checkpoint(
    source: str | Path, token: str | bool | None = None, revision: str | None = None, **options: Any
) -> Checkpoint:
    """`source`: a local folder, or a name on the hub (`revision`: branch, tag or commit there); or a GGUF file, in a
    folder or in a repository: `folder/FILE.gguf`, `org/repo/FILE.gguf`, or `gguf_file`.

    `options`: further fields of `Access`.

    HF_HOME, HF_HUB_OFFLINE and a saved login are honoured. Raises ModelNotFound with the hub's own words, also for
    gated repositories.
    """
    source, reading = _split(str(source), Access(token, revision, **options))
    folder, file = Path(source).expanduser(), reading.gguf_file or "config.json"
    name = source if reading.gguf_file is None else f"{source}/{reading.gguf_file}"
    if folder.is_dir():
        inside = folder / reading.subfolder
        if not (inside / file).is_file():
            hint = "is it a folder written by save_pretrained, or does it hold a GGUF file? Then pass that"
            raise ModelNotFound(f"{inside} holds no {file}{': ' + hint if reading.gguf_file is None else ''}")
        return Checkpoint(name, folder=folder, reading=reading)
    if folder.is_file():
        words = "pass a folder, with config.json and the tensors as safetensors, or a file whose name ends with .gguf"
        raise ModelNotFound(f"{source} is a file: {words}")
    if source.startswith(("/", ".", "~")):
        raise ModelNotFound(f"there is no folder {source}")
    if reading.gguf_file is not None:
        check_remote(source, reading.gguf_file, reading)
    path = download(source, file, reading)
    # In the hub's cache every file is in a folder named after the commit, online and offline alike.
    commit = path.parents[len(Path(reading.subfolder, file).parts) - 1].name
    return Checkpoint(name, commit=commit, reading=reading)


def _split(source: str, reading: Access) -> tuple[str, Access]:
    """Folder or repository, and how to read it: of a GGUF file these are two parts of its name."""
    if reading.gguf_file is not None or not source.endswith(".gguf"):
        return source, reading
    parts = source.split("/")
    if Path(source).expanduser().is_file() or source.startswith(("/", ".", "~")):
        folder = "/".join(parts[:-1]) or ("/" if source.startswith("/") else ".")
        return folder, replace(reading, gguf_file=parts[-1])
    if len(parts) < 3:
        raise ModelNotFound(f"there is no file {source}")
    return "/".join(parts[:2]), replace(reading, gguf_file="/".join(parts[2:]))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Of a file that is the same while this is; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _read_json(path: Path) -> dict[str, Any]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
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


def _digest(stored: SafetensorsTensors, name: str) -> str:
    """A digest of a tensor's type, shape and every byte: a fine-tune may differ from its base in a few numbers."""
    shape = stored.shape(name)
    digest = hashlib.sha256(f"{NAMES[stored.dtype(name)]} {list(shape)}".encode())
    many = max(1, HASHED // max(1, prod(shape[1:])))
    for first in range(0, shape[0], many) if shape else [0]:
        piece = stored.read(name, slice(first, first + many))
        digest.update(piece.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
