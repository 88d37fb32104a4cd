"""Devices: the mesh, how arrays are placed on it, several processes, and the memory and speed of devices.

`mesh` makes the mesh and places parameters and batches by the rules of `lmjax.axes`; `pmap` runs the same step with
jax.pmap; `distributed` starts several processes and `watchdog` ends one that hangs; `memory`, `chips` and `peak` return
what a device can hold and compute; `topology` has devices that are not here, and `hlo`, `cost`, `collectives` and
`roofline` read what a compiled program needs. `malloc` holds workarounds for glibc and XLA on a CPU.

May be imported: model (boxed parameters), and what is below it in the layering; never training.

To add a mesh axis: its name and its rules in `lmjax/axes.py`, and its size in `mesh.ParallelConfig`.
"""
