"""nextslice under load, beside the real Label Studio on PostgreSQL: `-m benchmarks.load`."""
