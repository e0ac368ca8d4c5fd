"""A stand-in for the package: workers and an exporter that need no torch."""
