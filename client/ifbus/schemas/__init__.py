"""JSON schemas of what `ifbus ... --json` prints: ``envelope.json``, and one a command for its ``data``. Fields are only added."""
