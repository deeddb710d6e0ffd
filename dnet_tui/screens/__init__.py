"""Screens laid over the working one."""
