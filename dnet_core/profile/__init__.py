"""What is measured or read before planning: a model's size, a device's speed, a link's cost.

model.py     bytes, arithmetic and cache growth of every layer, from headers alone
tensors.py   ... which tensor belongs to which part of the model
caches.py    ... how each layer's cache grows, as mlx-lm keeps it
"""
