"""Report pages and comparisons of run folders."""
