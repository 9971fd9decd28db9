"""The networks that pictures are judged by, and where their weights come from."""
