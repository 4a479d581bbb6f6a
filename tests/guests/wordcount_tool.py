"""A tool for `ifbus tool build`: counts words. Built by the tests that need it; the component is 18 MB."""

import collections
import time


def run(input: dict) -> dict:
    """`{"text": "..."}` to `{"words": n, "top": [[word, count], ...]}`."""
    words = [word.strip(".,;:!?").lower() for word in input["text"].split()]
    print("counted", len(words))
    return {"words": len(words), "top": collections.Counter(words).most_common(3), "at": int(time.time())}
