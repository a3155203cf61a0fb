"""Whether shards are whole: each header, checksum and image looked at, duplicates and leaks found,
a clean copy made.

Reads shards as training does and writes nothing but what it is asked to. Knows no model and no
batch.
"""
