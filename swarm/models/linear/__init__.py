"""Linear layers made for a processor."""
