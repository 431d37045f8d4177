"""The five stages of moesaic and the vocabulary they share; plain Python over dataclasses, usable as a library.

Shape letters, the same in every docstring: `L` MoE layers, `E` logical experts, `P` slots (physical experts) of a
layer, `T` load windows, `R` ranks (GPUs).
"""
