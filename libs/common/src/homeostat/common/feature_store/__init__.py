"""One definition of a feature, read online (Redis) and offline (Delta tables)."""
