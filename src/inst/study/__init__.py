"""The user study: which of two results people prefer, and which factors of a style matter to them.

A study is one SQLite file with the pictures, the pairs to compare, and every answer.
"""
