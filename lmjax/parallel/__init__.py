"""Devices: the mesh and what lies where on it, several processes, memory, and what a host does between steps.

`mesh` makes the mesh and places parameters and batches by the rules of `lmjax.axes`; `pmap` is the same step by
jax.pmap; `distributed` starts several processes; `memory` and `peak` know what a device holds and computes.

May be imported: model (boxed parameters), and what stands below it; never training.

To add a mesh axis: its name and its rules in `lmjax/axes.py`, and its size in `mesh.ParallelConfig`.
"""
