"""Image sources: small configs whose `load()` returns a `Dataset`.

A source's fields determine all that is loaded, so a run's config specifies its data completely.
Slow imports happen only in `load()`.
"""
