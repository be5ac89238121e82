"""What the benchmarks share: processes that are watched, peers and where they are installed, and what is drawn."""
