"""One plug-in of each kind for Potstill, each in a file of its own."""
