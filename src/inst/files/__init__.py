"""Files on the disk: write them completely or not at all, list them, and record where they come from."""
