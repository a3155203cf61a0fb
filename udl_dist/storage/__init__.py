"""Bytes that lie elsewhere: object storage by URI, read by ranges, with time limits, retries and
second requests.

Knows no shard, no record and no image.
"""
