"""From paintings to a style (paper sec. 3.2)."""
