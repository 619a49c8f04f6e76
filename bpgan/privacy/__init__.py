"""Training with differential privacy, and what can be said of the privacy of a run.

==============  =========================================================================
``dpgan``       a GAN whose D is private, and whose G sees nothing that is
``merf``        one private release, and a generator that is fitted to it
``mechanism``   the private turn: clipped gradients, noise, its count of updates
``clipping``    the sum of the gradients of single records, each clipped
``accounting``  the epsilon and delta of the updates that a run has made, by dp-accounting
==============  =========================================================================
"""
