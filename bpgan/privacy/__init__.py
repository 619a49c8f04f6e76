"""Training with differential privacy, what can be said of the privacy of a run, and audits of any run.

==============  =========================================================================
``dpgan``       a GAN whose D is private, and whose G sees nothing that is
``merf``        one private release, and a generator that is fitted to it
``mechanism``   the private turn: clipped gradients, noise, its count of updates
``clipping``    the sum of the gradients of single records, each clipped
``products``    the gradient of a row as sums of products, of which norms and sums are known without it
``accounting``  the epsilon and delta of the updates that a run has made, by dp-accounting
``canaries``    records and gradients that are planted in a training, to be looked for
``audit``       what attacks find: members, and a lower bound of epsilon from one run
==============  =========================================================================
"""
