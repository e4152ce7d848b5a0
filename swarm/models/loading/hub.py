"""A repository on the Hugging Face hub: its files, whole or the bytes of them that are needed.

Whole files are the library's business, and in its cache. Of files of tensors only ranges are fetched, by plain HTTP
with the library's own session and headers, and kept at their places in a file as long as the whole (`sparse.py`); a
file that is in the library's cache is read there, and a server that knows no ranges is asked for the whole.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    build_hf_headers,
    hf_raise_for_status,
    http_stream_backoff,
)
from tqdm import tqdm

from swarm.caches import cache_dir
from swarm.errors import BadCheckpoint, ModelNotFound
from swarm.models.loading.ranges import Range, length, pieces
from swarm.models.loading.sparse import SparseFile, kept_of

log = logging.getLogger(__name__)

PIECE = 8 << 20
"""Bytes that are asked for at once."""
PARALLEL = 8
"""Pieces on their way at one time."""
TRIES = 5
"""In which nothing comes, before a piece is given up; the next go on after what has come."""
WAIT = 0.25
"""Seconds before the next, twice as many before each further."""
WHOLE = 0.98
"""A file of which more is wanted is fetched as a whole, into the library's cache."""
HTTPError: Any = HfHubHTTPError.__bases__[0]
"""Of the HTTP library that the hub's library uses, which depends on its version."""


@dataclass(frozen=True, slots=True)
class Access:
    """How files are found, each as in transformers' `from_pretrained`."""

    token: str | bool | None = None
    revision: str | None = None
    subfolder: str = ""
    variant: str | None = None
    cache_dir: str | Path | None = None
    force_download: bool = False
    local_files_only: bool = False
    gguf_file: str | None = None

    @property
    def offline(self) -> bool:
        """Whether the hub is not to be asked."""
        return bool(constants.HF_HUB_OFFLINE or self.local_files_only)


class NoSuchFile(ModelNotFound):
    """The repository is there, the file is not."""


class Offline(ModelNotFound):
    """The file is not on this machine and the hub was not asked, as HF_HUB_OFFLINE wants it."""


class _NoRanges(Exception):
    """The server gives files only as a whole."""


def download(name: str, file: str, how: Access) -> Path:
    """A whole file, out of the library's cache or into it. Raises ModelNotFound."""
    options = {"cache_dir": how.cache_dir, "force_download": how.force_download, "subfolder": how.subfolder or None}
    options |= {"revision": how.revision, "token": how.token, "local_files_only": how.local_files_only}
    with _told(name, file, how):
        return Path(hf_hub_download(name, file, **options))  # type: ignore[arg-type]


def beginning(name: str, file: str, how: Access, count: int) -> bytes | None:
    """The first bytes of a file that is not on this machine; None where it is, or they cannot be had: a download says
    why."""
    where = "/".join(part for part in (how.subfolder, file) if part)
    try:
        if how.offline or isinstance(try_to_load_from_cache(name, where, how.cache_dir, how.revision), str):
            return None
        headers = build_hf_headers(token=how.token) | {"Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
        url, found = hf_hub_url(name, where, revision=how.revision), bytearray()
        wait = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with http_stream_backoff("GET", url, headers=headers, timeout=wait, retry_on_exceptions=()) as answer:
            hf_raise_for_status(answer)
            for piece in answer.iter_raw():
                found += piece
                if len(found) >= count:
                    break
    except (HTTPError, OSError, ValueError):
        return None
    return bytes(found[:count])


def is_public(name: str, file: str, how: Access) -> bool:
    """Whether the hub gives a file to everybody, also to those who have no token; False where it cannot be asked."""
    if how.offline:
        return False
    where = "/".join(part for part in (how.subfolder, file) if part)
    try:
        get_hf_file_metadata(hf_hub_url(name, where, revision=how.revision), token=False)
    except (HTTPError, OSError, ValueError):
        return False
    return True


@contextlib.contextmanager
def _told(name: str, file: str, how: Access) -> Iterator[None]:
    """What the library raises, as ModelNotFound in its own words, also for gated repositories."""
    try:
        yield
    except LocalEntryNotFoundError as error:
        kind = Offline if how.offline else ModelNotFound
        raise kind(f"{file} of {name} is not on this machine and the hub cannot be reached: {error}") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:  # gated repositories are among the former
        raise ModelNotFound(str(error)) from error
    except EntryNotFoundError as error:
        raise NoSuchFile(f"{name} has no {file}: {error}") from error
    except HFValidationError as error:
        raise ModelNotFound(f"{name!r} is neither a folder on this machine nor a name on the hub: {error}") from error
    except ValueError as error:  # so the library wraps what was in the way of a forced download
        raise ModelNotFound(f"{file} of {name} could not be fetched: {error.__cause__ or error}") from error
    except (HTTPError, OSError) as error:
        raise ModelNotFound(f"{file} of {name} could not be fetched: {error}") from error


class HubFiles:
    """The files of tensors of one commit. Each method raises ModelNotFound where the hub does not give them.

    `kept`: the folder of what is fetched in parts. For threads.
    """

    def __init__(self, name: str, commit: str, how: Access, kept: Path | None = None) -> None:
        self._name = name
        self._commit = commit
        self._how = replace(how, revision=commit)
        folder = (kept or cache_dir() / "ranges") / name.replace("/", "--") / commit
        self._kept = folder / how.subfolder if how.subfolder else folder
        self._open: dict[str, Path | SparseFile] = {}
        self._lock = threading.Lock()

    def has(self, file: str) -> bool:
        """Whether there is such a file, which is not fetched."""
        try:
            return self._opened(file) is not None
        except (NoSuchFile, Offline):
            return False

    def size(self, file: str) -> int:
        """Bytes of a file."""
        opened = self._opened(file)
        return opened.stat().st_size if isinstance(opened, Path) else opened.size

    def path(self, file: str) -> Path:
        """Where a file is on this machine; of it there is what was fetched."""
        opened = self._opened(file)
        return opened if isinstance(opened, Path) else opened.path

    def read(self, file: str, first: int, last: int) -> bytes:
        """Some bytes, fetched if need be. Raises BadCheckpoint where the file ends before."""
        self.fetch({file: {file: [(first, last)]}}, progress=False)
        with self.path(file).open("rb") as opened:
            opened.seek(first)
            data = opened.read(last - first)
        if len(data) != last - first:
            raise BadCheckpoint(f"{file} of {self._name} ends before byte {last}")
        return data

    def fetch(self, wanted: Mapping[str, Mapping[str, Sequence[Range]]], progress: bool = True) -> None:
        """Fetch ranges of files, several at a time; `wanted`: by file, for each of several parts in turn, which are
        shown by name."""
        by_file: dict[str, list[Range]] = {}
        for files in wanted.values():
            for file, ranges in files.items():
                by_file.setdefault(file, []).extend(ranges)
        for file, ranges in by_file.items():
            opened = self._opened(file)
            if isinstance(opened, SparseFile) and length(opened.missing(ranges)) > WHOLE * opened.size:
                self._take_whole(file)
        tasks: list[_Task] = []
        for part, files in wanted.items():
            for file, ranges in files.items():
                opened = self._opened(file)
                if isinstance(opened, SparseFile):
                    tasks += [_Task(part, file, *each) for each in pieces(opened.missing(ranges), PIECE)]
        if tasks:
            self._check_room(tasks)
            self._run(tasks, progress)

    def _check_room(self, tasks: Sequence[_Task]) -> None:
        if self._how.offline:
            raise Offline(
                f"{tasks[0].file} of {self._name} is on this machine only in parts, and the hub was not asked"
            )
        need, free = sum(task.last - task.first for task in tasks), shutil.disk_usage(self._kept).free
        if need > free:
            raise ModelNotFound(f"{need} bytes of {self._name} are to be fetched, and {self._kept} has room for {free}")

    def _run(self, tasks: Sequence[_Task], progress: bool) -> None:
        left = {task.part: sum(each.part == task.part for each in tasks) for task in tasks}
        total = sum(task.last - task.first for task in tasks)
        pool = ThreadPoolExecutor(PARALLEL, "swarm-ranges")
        try:
            with tqdm(total=total, unit="B", unit_scale=True, disable=not progress, leave=False) as bar:
                running: dict[Future[None], _Task] = {pool.submit(self._piece, task): task for task in tasks}
                for done in as_completed(running):
                    done.result()
                    task = running[done]
                    bar.update(task.last - task.first)
                    left[task.part] -= 1
                    if not left[task.part]:
                        log.info("%s of %s is here", task.part, self._name)
                    bar.set_description(f"{self._name}: {task.part}")
        except _NoRanges:
            pool.shutdown(cancel_futures=True)
            for file in {task.file for task in tasks}:
                self._take_whole(file)
        finally:
            pool.shutdown(cancel_futures=True)

    def _piece(self, task: _Task) -> None:
        opened = self._opened(task.file)
        if not isinstance(opened, SparseFile):
            return
        with _told(self._name, task.file, self._how):
            opened.put(task.first, self._get(task, opened.size))

    def _get(self, task: _Task, size: int) -> bytes:
        """The bytes of a piece, out of as many answers as it takes."""
        data, wanted, left = bytearray(), task.last - task.first, TRIES
        while len(data) < wanted and left:
            before = len(data)
            try:
                for part in self._answer(task.file, task.first + before, task.last, size):
                    data += part
            except HfHubHTTPError:
                raise
            except HTTPError as error:
                log.debug("%s ended at %d of %d bytes: %r", task, len(data), wanted, error)
            if len(data) < wanted:
                left = TRIES if len(data) > before else left - 1
                time.sleep(WAIT * 2 ** (TRIES - left))
        if len(data) < wanted:
            raise OSError(
                f"the connection ends again and again after {len(data)} of {wanted} bytes; what is here is kept"
            )
        return bytes(data[:wanted])

    def _answer(self, file: str, first: int, last: int, size: int) -> Iterator[bytes]:
        headers = build_hf_headers(token=self._how.token)
        # Without this some servers compress, and forget the range.
        headers |= {"Range": f"bytes={first}-{last - 1}", "Accept-Encoding": "identity"}
        url, wait = self._url(file), constants.HF_HUB_DOWNLOAD_TIMEOUT
        with http_stream_backoff("GET", url, headers=headers, timeout=wait, retry_on_exceptions=()) as answer:
            if answer.status_code == 200 or answer.headers.get("Content-Encoding", "identity") != "identity":
                raise _NoRanges(url)
            hf_raise_for_status(answer)
            if answer.headers.get("Content-Range") != f"bytes {first}-{last - 1}/{size}":
                raise OSError(
                    f"{url} answers with bytes {answer.headers.get('Content-Range')}, not {first}-{last - 1}/{size}"
                )
            yield from answer.iter_raw()

    def _opened(self, file: str) -> Path | SparseFile:
        with self._lock:
            if file not in self._open:
                self._open[file] = self._find(file)
            return self._open[file]

    def _find(self, file: str) -> Path | SparseFile:
        how, where = self._how, "/".join(part for part in (self._how.subfolder, file) if part)
        cached = None if how.force_download else try_to_load_from_cache(self._name, where, how.cache_dir, self._commit)
        if isinstance(cached, str):
            return Path(cached)
        path = self._kept / file
        if how.offline:
            if (known := kept_of(path)) is None:
                raise Offline(f"{file} of {self._name} is not on this machine and the hub was not asked")
            return SparseFile(path, *known)
        if how.force_download:
            path.unlink(missing_ok=True)
        with _told(self._name, file, how):
            said = get_hf_file_metadata(self._url(file), token=how.token, retry_on_errors=True)
        if said.size is None:
            return download(self._name, file, how)
        return SparseFile(path, str(said.etag), said.size)

    def _take_whole(self, file: str) -> None:
        path = download(self._name, file, self._how)
        with self._lock:
            self._open[file] = path

    def _url(self, file: str) -> str:
        how = self._how
        return hf_hub_url(self._name, file, subfolder=how.subfolder or None, revision=self._commit)


@dataclass(frozen=True, slots=True)
class _Task:
    """A piece to be fetched; `part`: what it is shown as."""

    part: str
    file: str
    first: int
    last: int
