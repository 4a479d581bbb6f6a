"""A tool for `ifbus tool build`: counts words."""

import collections
from typing import Any


def run(input: dict[str, Any]) -> dict[str, Any]:
    """``{"text": "..."}`` to ``{"words": n, "top": [[word, count], ...]}``."""
    words = [word.strip(".,;:!?").lower() for word in input["text"].split()]
    return {"words": len(words), "top": collections.Counter(words).most_common(3)}
