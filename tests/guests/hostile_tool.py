"""A tool that tries what a guest must not have; each entry of the answer says what came of it."""

import os
import random
import socket

import wordcount_tool


def run(input: dict) -> dict:
    """`{"try": name}` to `{"outcome": ...}`; without "try" what its honest neighbour makes of it."""
    if "try" not in input:
        return wordcount_tool.run(input)
    if input["try"] == "spin":
        while True:
            pass
    if input["try"] == "memory":
        return {"outcome": len(bytearray(1 << 30))}
    if input["try"] == "output":
        return {"outcome": "x" * (1 << 20)}
    if input["try"] == "exit":
        raise SystemExit(3)
    if input["try"] == "random":
        return {"outcome": random.SystemRandom().getrandbits(64)}
    try:
        if input["try"] == "read":
            os.open("/etc/passwd", os.O_RDONLY)
        elif input["try"] == "write":
            os.open("/tmp/escaped", os.O_WRONLY | os.O_CREAT)
        elif input["try"] == "list":
            os.listdir("/")
        elif input["try"] == "socket":
            socket.create_connection(("127.0.0.1", 1))
        elif input["try"] == "environment":
            return {"outcome": dict(os.environ)}
    except OSError as error:
        return {"outcome": type(error).__name__}
    return {"outcome": "allowed"}
