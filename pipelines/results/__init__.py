"""What `infer` reads and writes."""
