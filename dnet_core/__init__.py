"""dnet core: discover -> profile -> solve -> load -> generate, for a ring of shard processes."""

__version__ = "0.1.0"
