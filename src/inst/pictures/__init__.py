"""Pictures: read and write files, convert colours, find edges, make sheets."""
