"""Pictures: files to tensors and back, colours, edges, sheets."""
