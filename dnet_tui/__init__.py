"""The terminal application of dnet: one screen over one coordinator."""
