"""Rebuilds the committed guests from their sources: WAT with wasmtime, C with the Zig compiler's clang (`ziglang`)."""

import subprocess
import sys
from pathlib import Path

import wasmtime

HERE = Path(__file__).parent


def main() -> None:
    for source in sorted(HERE.glob("*.wat")):
        source.with_suffix(".wasm").write_bytes(wasmtime.wat2wasm(source.read_text()))
    for source in sorted(HERE.glob("*.c")):
        target = source.with_suffix(".wasm")
        compiler = [sys.executable, "-m", "ziglang", "cc", "--target=wasm32-wasi", "-Os", "-s"]
        subprocess.run([*compiler, "-o", target.resolve(), source], check=True)  # one stands in the package
        target.chmod(0o644)


if __name__ == "__main__":
    main()
