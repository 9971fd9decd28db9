"""Learning: make a style from paintings (paper sec. 3.2)."""
