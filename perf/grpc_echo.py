"""The gRPC contestant: ``python perf/grpc_echo.py SOCKET`` answers a request with its bytes; no stubs, no serialisation."""

from __future__ import annotations

import sys
from concurrent import futures

import grpc

SERVICE, METHOD = "perf.Echo", "Ping"


def main(path: str) -> None:
    """Serve until killed."""
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=16))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    server.add_insecure_port(f"unix:{path}")
    server.start()
    print("ready", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main(sys.argv[1])
