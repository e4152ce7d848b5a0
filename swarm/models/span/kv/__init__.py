"""What the blocks of a span keep of each sequence."""
