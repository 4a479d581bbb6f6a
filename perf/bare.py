"""The bare contestant: what trio and MessagePack cost with nothing around them (the spike of DESIGN 7).

``python perf/bare.py SOCKET``: `trio.socket`, a limited unpacker, the reply by a direct non-blocking send. It answers a
request with its parameters, knows no methods, no users, no limits but the decoder's, and is no example to follow.
"""

from __future__ import annotations

import socket
import sys

import msgpack
import trio


async def serve(sock: trio.socket.SocketType, raw: socket.socket) -> None:
    """Echo until the client goes."""
    unpacker = msgpack.Unpacker(max_buffer_size=80 << 10, read_size=4096, max_array_len=4096, max_map_len=512)
    pack = msgpack.Packer(autoreset=True).pack
    with sock:
        while data := await sock.recv(16384):
            unpacker.feed(data)
            for message in unpacker:
                answer = pack([1, message[1], None, message[3]])
                try:
                    sent = raw.send(answer)
                except BlockingIOError:
                    sent = 0
                while sent < len(answer):
                    sent += await sock.send(answer[sent:])
    raw.close()


async def main(path: str) -> None:
    """Accept until killed."""
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        await listener.bind(path)
        listener.listen(1024)
        print("ready", flush=True)
        async with trio.open_nursery() as nursery:
            while True:
                sock, _ = await listener.accept()
                raw = socket.socket(fileno=socket.dup(sock.fileno()))
                raw.setblocking(False)
                nursery.start_soon(serve, sock, raw)


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
