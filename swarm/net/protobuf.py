"""Lets hivemind and libp2p live in one process. Import this before hivemind, from wherever hivemind is imported.

Both generate the same protobuf symbols (`crypto.pb.KeyType`, …) from equal definitions, and the protobuf runtime
takes each name once. libp2p's module stands in for hivemind's: the messages are the same on the wire. It is loaded by
its path, because importing libp2p's packages takes longer than all the rest of a client.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

NAME = "libp2p.crypto.pb.crypto_pb2"


def _share() -> None:
    if NAME not in sys.modules:
        package = importlib.util.find_spec("libp2p")
        if package is None or package.origin is None:
            return
        path = Path(package.origin).parent / "crypto" / "pb" / "crypto_pb2.py"
        spec = importlib.util.spec_from_file_location(NAME, path)
        if spec is None or spec.loader is None:
            return
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[NAME] = module
    sys.modules.setdefault("hivemind.proto.crypto_pb2", sys.modules[NAME])


_share()
