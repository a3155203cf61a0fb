"""Tar shards as they lie: walked, indexed, read by ranges, checked. Knows no pixel and no order."""
