"""The networks of the metrics, and the sources of their weights."""
