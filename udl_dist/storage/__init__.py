"""Object storage by URI: read by ranges, with time limits, retries and hedged requests."""
