"""To be described by its developer."""
