"""The user study: which of two results people prefer, and which factors of a style matter to them.

One SQLite file is one study: the pictures, the pairs to compare, and every answer.
"""
