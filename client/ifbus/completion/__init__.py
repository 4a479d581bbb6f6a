"""Completion scripts as `ifbus completion` prints them; `generate` makes them from the real commands."""
