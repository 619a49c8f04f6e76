"""Training with differential privacy, and what can be said of the privacy of a run.

==============  =========================================================================
``mechanism``   the private turn: clipped gradients, noise, its count of updates
``clipping``    the sum of the gradients of single records, each clipped
``dpgan``       a GAN whose D is private, and whose G sees nothing that is
==============  =========================================================================
"""
