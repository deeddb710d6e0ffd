"""MLX: a window of a model, its weights, its caches. Everything here runs on the one compute thread."""
