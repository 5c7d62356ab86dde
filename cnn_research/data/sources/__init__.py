"""Sources of images: one small config per source, with `load()` to a `Dataset`.

A source's fields decide everything about what is loaded, so a run's config names its data
completely. Nothing heavy is imported before `load()`.
"""
