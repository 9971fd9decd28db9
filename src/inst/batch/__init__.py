"""Many pictures: the inputs of a batch, as streams that are never in memory as a whole.

`sources.open_source` reads folders, globs, lists, shards and Parquet files, `pairs.read_pairs` pairs of a photo and a
style, and `prompts.read_prompts_file` prompts.
"""
