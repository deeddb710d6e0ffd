"""The shard process: serves its windows of a model over gRPC, computing on one MLX thread.

server.py      event loop: frames in, frames out
mlx_thread.py  the one compute thread and its inbox
runtime.py     what a frame does: run a window, pass on, sample
sessions.py    one sequence: caches, counters, sampler
sampler.py     logits -> token
"""
