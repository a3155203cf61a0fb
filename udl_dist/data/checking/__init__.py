"""`udl check`: damage, duplicates and leaks in shards, and a clean copy of them."""
