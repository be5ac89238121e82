"""What is made of finished runs: exports and pictures. Reads runs, and writes nothing into them."""
