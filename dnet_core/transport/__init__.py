"""Frames between processes: values, their bytes, and the links that carry them. gRPC stays in here."""
