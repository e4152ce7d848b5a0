"""safetensors files on the hub, of which only the header and the tensors that are read are fetched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch

from swarm.errors import BadCheckpoint
from swarm.models.loading.hub import PARALLEL, HubFiles
from swarm.models.loading.ranges import Range
from swarm.models.loading.safetensors import LENGTH, Entry, SafetensorsTensors, header_bytes, parse, part_of


def header_of(hub: HubFiles, file: str) -> dict[str, Entry]:
    """The tensors of a file. Raises BadCheckpoint, ModelNotFound."""
    size = hub.size(file)
    try:
        end = header_bytes(hub.read(file, 0, min(LENGTH, size)), size)
        return parse(hub.read(file, 0, end), size)
    except BadCheckpoint as error:
        raise BadCheckpoint(f"{file} on the hub is damaged: {error}") from error


class FetchedTensors(SafetensorsTensors):
    """Tensors of a checkpoint on the hub. `files`: the file of each tensor."""

    def __init__(self, files: Mapping[str, str], hub: HubFiles) -> None:
        super().__init__(files, hub.path)
        self._hub = hub

    def fetch(self, parts: Mapping[str, Collection[str]], progress: bool) -> None:
        """Fetch tensors, those of one part after those of another; `parts`: their names, by what is shown."""
        files = {self._files[name] for names in parts.values() for name in names}
        with ThreadPoolExecutor(PARALLEL) as pool:
            list(pool.map(self._known, files))
        wanted: dict[str, dict[str, list[Range]]] = {}
        for part, names in parts.items():
            by_file = wanted.setdefault(part, {})
            for name in names:
                entry = self.entry(name)
                by_file.setdefault(self._files[name], []).append((entry.first, entry.last))
        self._hub.fetch(wanted, progress)

    def read(self, name: str, rows: slice | None = None) -> torch.Tensor:
        """A tensor, or some of its rows; fetched where that was not done before."""
        first, last, _ = part_of(self.entry(name), rows)
        if first < last:
            self._hub.fetch({name: {self._files[name]: [(first, last)]}}, progress=False)
        return super().read(name, rows)

    def _header(self, file: str) -> dict[str, Entry]:
        return header_of(self._hub, file)
