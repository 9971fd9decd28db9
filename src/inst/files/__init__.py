"""The disk: files written whole or not at all, listed, and described by where they come from."""
