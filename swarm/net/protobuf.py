"""Makes hivemind and libp2p importable in one process. Import this before anything of hivemind.

Both packages define the protobuf file `crypto.pb`, and protobuf takes a symbol only once. libp2p's is the larger of
the two, so hivemind gets libp2p's. It is loaded without the rest of libp2p, and hivemind without its training parts:
both take seconds to import, and are imported as usual when somebody asks for them.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_LIBP2P = "libp2p.crypto.pb.crypto_pb2"
_HIVEMIND = "hivemind.proto.crypto_pb2"


def folder_of(package: str) -> Path:
    """Where an installed package lies, without importing it. Raises ImportError."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"{package} is not installed; it comes with swarm's dependencies: pip install swarm-llm")
    return Path(spec.submodule_search_locations[0])


def _share_definitions() -> None:
    """Where the program imported hivemind before us, hivemind keeps its own; libp2p can then not be imported.

    So it does where libp2p is not installed: it comes with the extra for browsers.
    """
    if _HIVEMIND in sys.modules or importlib.util.find_spec("libp2p") is None:
        return
    if _LIBP2P not in sys.modules:
        path = folder_of("libp2p") / "crypto" / "pb" / "crypto_pb2.py"
        _load(importlib.util.spec_from_file_location(_LIBP2P, path), execute=True)
    sys.modules[_HIVEMIND] = sys.modules[_LIBP2P]


def _postpone_hivemind() -> None:
    """Make `hivemind` a package whose own `__init__` runs when something that it exports is asked for."""
    if "hivemind" in sys.modules:
        return
    spec = importlib.util.find_spec("hivemind")
    module = _load(spec, execute=False)

    def load(name: str) -> Any:
        # `import hivemind.p2p.x as x` asks for `p2p` before it is whole: that is no reason to import all the rest.
        if submodule := sys.modules.get(f"hivemind.{name}"):
            return submodule
        if name.startswith("__") and name not in ("__version__", "__all__"):
            raise AttributeError(f"module 'hivemind' has no attribute {name!r}")
        del module.__dict__["__getattr__"]
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(module)
        return getattr(module, name)

    module.__dict__["__getattr__"] = load


def _load(spec: ModuleSpec | None, *, execute: bool) -> ModuleType:
    if spec is None or spec.loader is None:
        raise ImportError("hivemind or libp2p is installed in parts: pip install --force-reinstall swarm-llm")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    if execute:
        spec.loader.exec_module(module)
    return module


def _quieten_hivemind() -> None:
    """Only errors, through the program's own logging; and give back the name of the level of warnings.

    multiaddr writes a line for each part of each address that it reads.
    """
    from hivemind.utils.logging import use_hivemind_log_handler

    use_hivemind_log_handler("nowhere")
    logging.addLevelName(logging.WARNING, "WARNING")
    logging.getLogger("hivemind").setLevel(logging.ERROR)
    logging.getLogger("multiaddr").setLevel(logging.WARNING)


_share_definitions()
_postpone_hivemind()
_quieten_hivemind()
