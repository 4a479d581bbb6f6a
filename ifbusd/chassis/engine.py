"""One wasmtime configuration for compiler and workers: code compiled under one setting is refused under another.

Policy (FACTS 3): Cranelift only; no GC, threads, shared memory, memory64, stack switching, custom page sizes; no fuel and no
epochs, because limits are held from outside the code (DESIGN 6).
"""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from typing import Final

import wasmtime

# What guest code may use of the stack before it traps; RLIMIT_STACK stays far above it, else recursion is a SIGSEGV.
MAX_WASM_STACK_BYTES: Final = 512 << 10

# Bump when `make_engine` changes: compiled code of other settings is then not looked for.
SETTINGS_VERSION: Final = "1"


def make_engine(*, parallel_compilation: bool = False) -> wasmtime.Engine:
    """An engine with the policy's settings; `parallel_compilation` starts threads while compiling and changes no code."""
    config = wasmtime.Config()
    config.strategy = "cranelift"
    config.cranelift_opt_level = "speed"
    config.parallel_compilation = parallel_compilation
    config.max_wasm_stack = MAX_WASM_STACK_BYTES
    config.wasm_component_model = True
    config.gc_support = False
    config.wasm_gc = False
    config.wasm_function_references = False
    config.wasm_exceptions = False
    config.wasm_threads = False
    config.shared_memory = False
    config.wasm_memory64 = False
    config.wasm_multi_memory = False
    config.wasm_stack_switching = False
    config.wasm_custom_page_sizes = False
    return wasmtime.Engine(config)


def fingerprint() -> str:
    """Names engine version, settings and machine: compiled code is only good for one such."""
    parts = ("wasmtime", version("wasmtime"), SETTINGS_VERSION, platform.machine())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
