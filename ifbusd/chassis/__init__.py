"""The chassis runs code of strangers: one locked-down process per sandbox, hard limits held from outside (DESIGN 6).

Daemon side:  service.py (IFChassis) over sandbox.py (one sandbox), processes.py (zygote and workers as trio sees them),
              compiler.py, cache.py and blobs.py (from bytes to verified code), watch.py (limits held from outside).
Other side:   zygote.py forks, worker.py serves or compiles, lockdown.py locks, guest.py, wasi.py and wasip2.py run guests.
Both sides:   model.py and rules.py (values and pure decisions), engine.py (one wasmtime configuration), messages.py.

Keep this file free of imports: the zygote is `python -I -m ifbusd.chassis.zygote` and must load neither trio nor a key.
"""
