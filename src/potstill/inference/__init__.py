"""How any model, teacher or student, is asked for text: a port (`base.py`) and its adapters.

In: requests. Out: replies. Import `potstill.inference.open.open_model`; nothing heavy is loaded
before a model is opened.
"""
