"""The bare worker: ``python perf/bare_worker.py SOCKET MODULE EXPORT`` runs a WebAssembly function for whoever asks.

What any worker process costs: JSON both ways over a socket, a fresh store and instance per call, as the chassis has, and nothing
else: no limits, no record, no second process.
"""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path

import wasmtime

from ifbusd.chassis.engine import make_engine


def main(path: str, module: str, export: str) -> None:
    """Serve one client after the other until killed."""
    engine = make_engine()
    linked = wasmtime.Linker(engine).instantiate_pre(wasmtime.Module(engine, Path(module).read_bytes()))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while True:
            client, _ = listener.accept()
            with client:
                while data := client.recv(1 << 16):
                    store = wasmtime.Store(engine)
                    function = linked.instantiate(store).exports(store)[export]
                    assert isinstance(function, wasmtime.Func)
                    answer = function(store, *json.loads(data)["args"])
                    store.close()
                    client.send(json.dumps(answer).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
