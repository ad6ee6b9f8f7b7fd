"""What `benchmarks.learning` compares peers on and by: data sets, scores, records, the page."""
