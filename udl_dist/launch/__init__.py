"""Ray Train: workers started, watched and restarted, and what each of them does."""
