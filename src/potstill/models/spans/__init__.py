"""Models that mark answers in passages: windows, answers, and what a teacher says of spans.

Import-light: torch comes in with the modules that need it.
"""
