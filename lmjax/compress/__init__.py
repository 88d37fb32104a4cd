"""Compression: smaller models from trained ones, by kernels in few bits and by fewer parameters.

This room may import inference, the layers below it, and `analysis.figures`. `methods` lists the methods;
`lmjax.model.quantized` keeps and reads kernels in few bits; `lmjax.runs.compress` opens a model and writes the smaller
one as a workdir.

To add a method: an entry in `methods.METHODS`, a function from parameters to parameters in a file here, and a test
against a reference in float64.
"""
