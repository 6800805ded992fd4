"""The student as something that people talk to. Never imports `distill`."""
