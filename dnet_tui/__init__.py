"""The terminal application of dnet: one screen over one `dnet_core.coordinator.Coordinator`."""
