"""How any model is named, found, fetched, loaded and checked. Import the module you need."""
