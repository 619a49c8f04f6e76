"""Training with differential privacy: its accounting, and audits of it.

================  ==================================================================================================
``canaries``      records and gradients that are planted in a training, to be looked for afterwards
``audit``         what an attack finds: membership inference, and a lower bound of epsilon from one run
================  ==================================================================================================
"""
