"""Devices: axis names and their rules, the mesh, and several processes."""
