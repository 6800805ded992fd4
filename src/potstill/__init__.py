"""Potstill distils a large language model into a small one that knows your domain."""

__version__ = "0.1.0"
