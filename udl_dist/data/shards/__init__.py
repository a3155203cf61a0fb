"""Tar shards: walked, indexed, read and verified, without decoding an image."""
