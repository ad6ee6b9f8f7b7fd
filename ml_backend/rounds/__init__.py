"""The loop: sync, train, score, select, publish; its records, its jobs and what repairs it."""
